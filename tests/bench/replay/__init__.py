"""What training.replay keeps and costs, on three small tasks with SmolLM2-135M: `python -m tests.bench.replay`."""
