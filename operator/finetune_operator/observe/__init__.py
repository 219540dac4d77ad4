"""Observe: the world of one job as frozen facts.

FineTuneJob ─┬─ Job per stage and attempt ── Pod, which reports its progress; and Kueue's Workload, if the Job is in a queue
└─ per release: Deployment ── Pods, candidate Service;  and the job's own Service

- `label`: labels and annotations by which children are found; every child has the job's uid.
- `containers`: the containers of a pod, the operator's own and injected ones.
- `ownership`: fields that other managers own.
- `projections`: one small fact for each child, from its object.
- `records`: the JSON records in the status, parsed: inputs of the revision, the serving release.
- `parents`: the FineTuneJob: spec, status and records, each parsed once.
- `pools`: ServingPools, as `parents` for jobs; `shared`: pools as a job sees them; `members`: what a job contributes to one.
- `observation`: all of these together, the input of a decision.
"""
