"""The contract: everything that two parts of the system, or a user and the system, must agree on at run time.

`job`, `basemodel` and `status` are the Kubernetes resources, `schema` is what the API server checks of them. `run` is what the
operator hands to a stage's pod, `outcome` what the pod answers, `exits` what its exit code means, `layout` where its files lie
in S3. Only pydantic and the standard library are imported here, since both images carry this package. hack/generate makes CRDs
and reference pages of it.
"""

GROUP = "finetune.dev"
VERSION = "v1alpha1"
API_VERSION = f"{GROUP}/{VERSION}"
