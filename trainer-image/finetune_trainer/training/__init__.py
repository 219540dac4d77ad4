"""Training: the loop over optimizer steps, and what it stands on.

loop        optimizer steps, validations, checkpoints, and what is reported of them
objective   what training minimises: a value for some rows, and its gradient into the adapter
batches     which examples each step sees, and how a step is cut into micro-batches
checkpoint  all that is needed to resume as if nothing had happened: safetensors and JSON
watchdogs   signs that a training goes nowhere, each with what to try
processes   several processes that train one adapter: who this one is, and sums over all of them
adapter     the adapter as files in PEFT's layout, checked against what vLLM refuses or silently ignores
"""
