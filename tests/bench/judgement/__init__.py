"""Which method wins on tasks of many kinds, and what the product says: `python -m tests.bench.judgement`, see __main__."""
