"""Stages: each is one process, from the run file to the outcome, to be read from top to bottom.

    preflight  is everything available and correct, before an accelerator is requested?
               (prerequisites: the output, base model, documents, benchmarks; collect: every row)
    baseline   before training: does a prompt alone pass the gates?
    train      data -> model -> adapter -> steps -> adapter in storage
    evaluate   every contender on the same held-out examples; gates, report
    verify     does the running server really apply the adapter?
    fetch      the server's init container: base model and adapter as local files
    estimate   `finetune-trainer estimate`: what memory training needs; for people, not a stage of a job

verify and fetch run in a slim image: they and what they import stay free of torch, transformers and numpy.
"""
