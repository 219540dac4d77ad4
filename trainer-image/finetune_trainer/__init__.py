"""The trainer image's program: one process per stage, started by the operator or by hand with a run file.

`__main__` chooses the stage. Each stage reads `finetune_api.run.Run`, reaches data and results through `store`, and returns a
`finetune_api.outcome.Outcome`. Each package below has one subject, and a map in its `__init__`; imports point downwards only:

    stages      preflight, baseline, train, evaluate, verify, fetch: read top to bottom
    harness     public benchmarks
    evaluation  answers -> metrics -> evidence -> gates
    training    loop, objective, batches, checkpoints
    checks      data checks                                      no torch
    planning    advice, verdict, memory, duration and cost       no torch
    gateway     what stands before the engine in a pool's pods  no torch; aiohttp only here
    data        file -> rows -> examples -> token ids            no torch
    store       objects by URI                                   no torch; boto3 only here
    engine      forward and backward passes, generation          the only package that owns tensors
    report      results.json -> one HTML page
    process     errors, log, secrets, signals, machine, progress imports nothing of ours
"""
