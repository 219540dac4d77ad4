"""The operator: gather -> decide -> apply -> one status write.

`handlers` hears of changes and queues the job's key. `reconcile` takes a key: `gather` puts the job's world together from the
caches that `cluster` keeps, as the frozen facts of `observe`; `decide` (pure) says what follows, made of `manifests` (pure); and
`cluster` carries it out. Nothing is remembered in Python between two reconciles: the status of the FineTuneJob is the memory.
"""
