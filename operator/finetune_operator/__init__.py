"""The operator: gather -> decide -> apply -> one status write.

`handlers` receives events and queues the job's key. `reconcile` takes a key: `gather` collects the job's world from the caches of
`cluster`, as the frozen facts of `observe`; `decide` (pure) returns the next step, using `manifests` (pure); `cluster` carries it
out. Python keeps no state between two reconciles: all state is in the FineTuneJob's status.

- `handlers`, `workqueue`: events of FineTuneJobs (the only Kopf module), and the queue of keys that they fill.
- `reconcile`, `pace`: one job, one pass; how often an object may be written.
- `gather`: the inputs of a decision, with a drawing of the scenarios; `observe/`: these inputs as frozen facts.
- `decide/`: the next step, as an ordered list of rules; `manifests/`: the desired objects.
- `conditions`: named edits of a status, and which of them are events; `revisions`: which edit of a spec causes which work.
- `candidates`: which of several base models is the job's now.
- `cluster`: the only client of the Kubernetes API; `cache`: what it last said, as `stored` keeps it and `watches` bring it;
  `clock`: its time; `lease`: leader election.
- `kueue`: a Job's state in its queue; `progress`: how far trainings are, read from their pods; `servertraffic`: what servers that
  are compared in a rollout have answered.
- `poolreconcile`: one ServingPool, one pass; `poolstates`: what its pods report; `index`: what its gateways are to hold.
- `metrics`, `series`: Prometheus, of the operator itself and of each job; `log`: one JSON object per line.
- `settings`, `podsettings`: what the platform team sets through the chart.
"""
