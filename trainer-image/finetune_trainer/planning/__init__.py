"""Planning: what training needs, and whether it is the right tool. Pure arithmetic and rules; no torch.

    measurements  what preflight measured about the data and the coming training
    advisor       is fine-tuning the right tool? Rules named as facts
    verdict       what the measurements mean for this job
    architecture  the numbers of a base model's config.json, or of the catalogue
    workload      the input of the estimates: model, settings, examples, device
    memory        memory of LoRA training, buffer by buffer
    parallelism   whether each process holds the base model, or a part of it
    inference     memory of baseline, evaluation and serving
    forecast      what fits where, and what to change where it does not
    epoch_count   the number of epochs
    learning_rate the peak learning rate of a job that sets none
    learning_curve whether more data would help, by the first epoch of a training
    effort        estimated duration and price

architecture, workload -> memory -> parallelism -> forecast; measurements -> advisor -> verdict
"""
