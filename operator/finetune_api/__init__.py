"""The contract: everything that two components, or a user and the system, must agree on at run time.

- `job`, `basemodel`, `servingpool`, `status`: the Kubernetes resources; `model`: the base of every type; `schema`: their
  structural schemas.
- `intent`, `dataset`, `storage`, `training`, `resources`, `evaluation` (with `contenders`, `gates` and `benchmarks`),
  `deployment`: the sections of a job's spec.
- `candidates`: several base models for one job, and what was measured of each.
- `reasons`: conditions, phases, stages and reasons; `checks`: the data checks; `arguments`: vLLM's arguments that jobs may set.
- `revision`: what a revision consists of, and its name; `course`: the stages of a job, and what each gets on its command line.
- `run`: the file that the operator passes to a stage's pod; `outcome`: the result that the pod returns; `exits`: its exit codes.
- `serving`: what the operator and the gateways of a pool of servers tell each other.
- `layout`: the places of a job's files in S3; `results`: results.json of an evaluation; `metrics`: all Prometheus metrics.

Only pydantic and the standard library are imported here, since both images contain this package. hack/generate makes CRDs and
reference pages from it.
"""

GROUP = "finetune.dev"
VERSION = "v1alpha1"
API_VERSION = f"{GROUP}/{VERSION}"
