"""Public benchmarks: tasks of lm-evaluation-harness, played by the loaded model. Their code is the pinned package's alone.

catalogue (a task's files are read as text: is it one that may run here?) -> tasks (the task with its questions, from files or the
hub) -> player (answers by the trainer's own passes) -> contest (base and tuned model, question by question)

Nothing of it is imported where the job has no evaluation.harness: the package and `datasets` take seconds to import.
"""
