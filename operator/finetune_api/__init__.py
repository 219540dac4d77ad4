"""The contract: everything that two parts of the system, or a user and the system, must agree on.

`job`, `basemodel` and `status` are the Kubernetes resources; `crd` turns them into CustomResourceDefinitions and
`reference` into documentation. `run` is what the operator hands to a stage's pod, `outcome` what the pod answers,
`exits` what its exit code means, `layout` where its files lie in S3. Only pydantic and the standard library are
imported here, since both images carry this package.
"""

GROUP = "finetune.dev"
VERSION = "v1alpha1"
API_VERSION = f"{GROUP}/{VERSION}"
