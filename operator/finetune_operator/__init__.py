"""The operator: gather -> decide -> apply -> one status write.

`handlers` receives events and queues the job's key. `reconcile` takes a key: `gather` collects the job's world from the caches of
`cluster`, as the frozen facts of `observe`; `decide` (pure) returns the next step, using `manifests` (pure); `cluster` carries it
out. Python keeps no state between two reconciles: all state is in the FineTuneJob's status.
"""
