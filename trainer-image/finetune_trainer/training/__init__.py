"""Training: the loop over optimizer steps, and what it stands on.

loop        optimizer steps, validations, checkpoints, and the reports about them
trials      which learning rates are tried first, and which continues
objective   the function that training minimises
batches     which examples each step sees, and how a step is cut into micro-batches
replay      general examples among the task's, answered by the base model before training; replay.txt has their prompts
checkpoint  everything needed to resume exactly: safetensors and JSON
shortage    half the micro-batch in all processes, where a GPU's memory runs out
watchdogs   signs that training does not work, each with what to try
processes   several processes that train one adapter: ranks, and sums over all of them
rendezvous  where they meet, and how long they wait for each other
adapter     the adapter as files in PEFT's layout, checked against what vLLM refuses or silently ignores
"""
