"""Public benchmarks: tasks of lm-evaluation-harness, played by the loaded model. Their code is the pinned package's alone.

description (a task's files, read as text) -> refusal (may it run here?) -> catalogue (tasks by name) -> tasks (with their
questions, from files or the hub) -> player (answers by the trainer's own passes) -> play (base and tuned model, side by side)

Nothing of it is imported where the job has no evaluation.harness: the package and `datasets` take seconds to import.
"""
