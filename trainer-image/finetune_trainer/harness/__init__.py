"""Public benchmarks: tasks of lm-evaluation-harness, answered by the loaded model. All their code is the pinned package's.

description (a task's files, read as text) -> refusal (may it run here?) -> catalogue (tasks by name) -> tasks (with their
questions, from files or the hub) -> measures (what they measure) -> player (answers by the trainer's own
engine) -> play (base and tuned model on the same questions)

Imported only where the job has evaluation.harness: the package and `datasets` take seconds to import.
"""
