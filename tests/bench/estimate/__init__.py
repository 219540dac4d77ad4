"""The memory estimate against measured peaks: `python -m tests.bench.estimate`, see __main__."""
