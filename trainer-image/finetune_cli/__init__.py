"""`finetune`: a FineTuneJob without a cluster. The same manifest, the same checks, the same stages, on one machine.

    __main__   the verbs and their options
    validate   data checks on files
    advise     preflight of a job, nothing stored
    estimate   memory, duration and price of a job's training
    run        all stages of a job, one child process after the other
    report     results of an evaluation, as tables
    chat       a question to a served model, by its job's name or by an address

    documents  YAML files -> documents that know the line of every field
    manifests  what is wrong with a document, as the API server would say it
    rules      the CEL rules of the schema, which in a cluster the API server applies
    jobs       documents -> a job: spec, base model, run file, all by the contract's own code
    stages     one stage as a child process: started, watched, stopped
    answer     the answer of every verb: the exit code, and the JSON of --output json
    show       the same as text

It stands on the contract (finetune_api) and on the trainer (finetune_trainer). Of Kubernetes, only
`chat` knows: it calls the user's kubectl.
"""
