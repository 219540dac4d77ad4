"""Desired state: from facts to manifests. No client, no clock, no errors; each file builds one kind and reads like its YAML.

- `stages`: the Job of one attempt of a stage; `pods`: what its pods and a server's have in common.
- `vllm`: the command and containers of a server, of a Deployment or, as `sidecar`, beside baseline and evaluation.
- `pool`: all objects of a ServingPool; `inference`: those of Gateway API's inference extension, and llm-d's.
- `gateway`: the container of the gateway, in a pool's pods or alone as an activator; `activator`: that of a job's own servers.
- `release`: the record of a candidate; `deployment`: its server; `service`: the Services of a job, a release, several nodes;
  `route`: its HTTPRoute, and a pool's.
- `modelcache`: the claim on which pods share base models, put into a finished pod.
- `meta`: names, labels and owners of all of them.
"""
