"""Gateway: what stands before the engine in every pod of a ServingPool. No torch, no boto3's stores.

    clients   -> :8000  /v1/...                     tenants -> routing -> proxy -> engine on loopback
    stages    -> :8002  PUT /adapters/SHA256        archive -> volume -> loading -> engine
    operator  -> :8002  /state                      traffic
    clients   -> :8000  /v1/...  of the activator   access -> a pod of the pool, once one can answer
    operator <-         /pools/NAMESPACE/NAME       index: long poll

pod        the process: two servers, what runs beside them, its end
activator  the process of a pod without an engine, which holds requests while no server of the pool or job is ready
behind     what an activator stands before: a pool, or the servers of one job
listening  what both share: listening, probes, work beside the requests
access     what a client may see and name
proxy      one request to the engine, and its answer
answers    the model's name put back; what the counters need to know
traffic    counters by model and revision, for the operator and for Prometheus
routing    which model a name means for a tenant, and which revision answers
tenants    keys and namespaces
index      what the pool is to hold, followed by long polls
loading    from the volume into the engine, and out of it
peers      the other pods: adapters are copied between them
volume     adapters as folders, complete and checked or not there
archive    a folder's files as a tar file, both ways
engine     vLLM's own API
delivery   the sender's side: a stage of the job brings an adapter to all pods
settings   the command line
"""
