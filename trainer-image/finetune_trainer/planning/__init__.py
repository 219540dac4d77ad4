"""Planning: what a training will take, and whether it is the right tool. Pure arithmetic and rules; no torch.

    measurements  what preflight measured of the data and of the training to come
    advisor       is fine-tuning the right tool? Rules named as facts
    verdict       what was measured, and what that means for this job
    architecture  the numbers of a base model's config.json, or of the catalogue
    workload      what is to be trained, on what: all that the estimates look at
    memory        memory of LoRA training, buffer by buffer
    forecast      what fits where, and what to change where it does not
    epoch_count   how often training sees its examples
    effort        how long training will take, and what that costs

architecture, workload -> memory -> forecast; measurements -> advisor -> verdict
"""
