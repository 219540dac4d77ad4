"""How far the learning rates that a job gets hold: see __main__."""
