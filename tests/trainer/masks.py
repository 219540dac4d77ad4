"""What a loss mask covers, as words."""

from finetune_trainer.data import dataset, tokens


def learned(encoder: tokens.Encoder, example: dataset.Example) -> list[str]:
    """The learned tokens of an example as texts, one for each run of them."""
    encoded, found, before = encoder.encode(example), [], False
    for token, mark in zip(encoded.ids, encoded.learned, strict=True):
        if mark and not before:
            found.append([token])
        elif mark:
            found[-1].append(token)
        before = mark
    return [encoder.tokenizer.decode(ids) for ids in found]
