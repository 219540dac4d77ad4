"""Gateway: what stands before the engine in every pod of a ServingPool. No torch, no boto3's stores.

    clients   -> :8000  /v1/...                     tenants -> routing -> proxy -> engine on loopback
    stages    -> :8002  PUT /adapters/SHA256        archive -> volume -> loading -> engine
    operator  -> :8002  /state                      traffic
    operator <-         /pools/NAMESPACE/NAME       index: long poll

settings   the command line
archive    a folder's files as a tar file, both ways
delivery   the sender's side: a stage of the job brings an adapter to all pods
"""
