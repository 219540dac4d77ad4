"""The operator: gather -> decide -> apply -> one status write.

`handlers` hears of changes and queues the job's key; `reconcile` takes a key, lets `observe` gather the job's world from the
caches that `cluster` keeps, asks `decide` (pure) for the next step, and lets `cluster` carry it out. Nothing is remembered in
Python between two reconciles: the status of the FineTuneJob is the memory.
"""
