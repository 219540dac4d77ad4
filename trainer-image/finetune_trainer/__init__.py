"""The trainer image's program: one process a stage, started by the operator or by hand with a run file.

`__main__` chooses the stage: preflight, train, evaluate, verify, or fetch (the server's init container). Each stage reads
`finetune_api.run.Run`, reaches data and results through `storage`, and answers with `finetune_api.outcome.Outcome`.
fetch and verify run in a slim image: they and what they import stay free of torch, transformers and numpy.
"""
