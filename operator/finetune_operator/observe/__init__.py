"""What is: the world of one job as frozen facts.

    FineTuneJob ─┬─ Job per stage and attempt ── Pod, which tells its progress; and Kueue's Workload, where the Job is in a queue
                 └─ per release: Deployment ── Pods, candidate Service;  and the job's own Service

- `label`: labels and annotations by which children are found; every child carries the job's uid.
- `projections`: one small fact for each child, from what the API server sent.
- `records`: what the status remembers as text, parsed: inputs of the revision, the serving release.
- `parents`: the FineTuneJob: spec, status and records, each parsed once.
- `observation`: all of these together, as a decision sees them.
"""
