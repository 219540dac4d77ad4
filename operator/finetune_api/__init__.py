"""The contract: everything that two components, or a user and the system, must agree on at run time.

`job`, `basemodel` and `status` are the Kubernetes resources, `schema` their structural schemas. `run` is the file that the
operator passes to a stage's pod, `outcome` the result that the pod returns, `exits` the meaning of its exit code, `layout`
the places of its files in S3. Only pydantic and the standard library are imported here, since both images contain this
package. hack/generate makes CRDs and reference pages from it.
"""

GROUP = "finetune.dev"
VERSION = "v1alpha1"
API_VERSION = f"{GROUP}/{VERSION}"
