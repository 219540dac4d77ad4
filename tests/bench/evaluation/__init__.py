"""The evaluation's answers against transformers' own: `python -m tests.bench.evaluation`, see __main__."""
