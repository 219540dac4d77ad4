"""The trainer's benchmark: `make bench-trainer`.

workloads -> chats made from a seed            lengths  -> their tokens, counted by the benchmark itself
recipe    -> what both sides train with        models   -> the base models
peers     -> who is compared, and how set      sides/   -> the programs that run inside a peer's environment
ours      -> the product's own command         process  -> a run's peak memory and time
rounds    -> repetitions, interleaved          results  -> rows of trainer.json        report -> trainer.md
machine   -> what it ran on, and its rate of matrix products                           search -> a peer's best settings
"""
