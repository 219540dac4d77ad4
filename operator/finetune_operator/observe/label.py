"""Labels and annotations by which children are found and distinguished. Every child has the uid of its FineTuneJob or
ServingPool."""

MANAGER = "finetune-operator"
"""Who we are, as field manager, in the label of our children and in events."""
MANAGED_BY = "app.kubernetes.io/managed-by"

CONTAINER, SERVER, FETCH, GATEWAY = "finetune", "server", "fetch", "gateway"
"""The container of a stage, and those of a server's pod; a gateway is in those of a ServingPool alone."""
CONTAINERS = frozenset({CONTAINER, SERVER, FETCH, GATEWAY})

UID = "finetune.dev/uid"
JOB = "finetune.dev/job"
STAGE = "finetune.dev/stage"
REVISION = "finetune.dev/revision"
RELEASE = "finetune.dev/release"
POOL = "finetune.dev/pool"
"""The ServingPool that an object belongs to, by name."""
ACTIVATOR = "finetune.dev/activator"
"""The ServingPool, or the FineTuneJob (the pod has JOB then), whose requests a pod holds while no server is ready, by name. Such
a pod has POOL as well, without a value: it is not one of the servers, and has their network policy and monitoring."""
ATTEMPT = "finetune.dev/attempt"
COMPLETION_INDEX = "batch.kubernetes.io/job-completion-index"
"""Label and annotation that the Job controller sets on the pods of an Indexed Job."""
GPUS = "finetune.dev/gpus"
GPU_TYPE = "finetune.dev/gpu-type"
RUN_FILE = "finetune.dev/run-file"
"""Annotation of a pod: its run file, mounted as a file."""
HASH = "finetune.dev/spec-hash"
"""Annotation: the digest of what the operator wrote. The next manifest is compared with it, never with the object itself, in
which others may have changed something."""
REPLICAS = "finetune.dev/replicas"
"""Annotation of a Deployment: the replicas that the operator last wrote; an autoscaler may have changed them since."""
TAKEN_BACK = "finetune.dev/taken-back-from"
"""Annotation of a Service: the managers from which the operator took fields back. If they change them again, they keep them."""
AUTHORITIES = "ca"
"""The volume with a company's certificate authorities."""
