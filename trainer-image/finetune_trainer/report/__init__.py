"""The report: one HTML file without any request to elsewhere, light and dark, for people. Pure: results in, text out.

results -> judgement (what they say about fine-tuning, in words) -> sections, scores, samples (HTML of each part) -> document

`reading` finds values in the results, `words` says numbers, `drawings` draws them,
`differences` marks where answers differ, `markup` makes all that users wrote harmless.
"""

from finetune_trainer.report.document import page
from finetune_trainer.report.samples import choose

__all__ = ["choose", "page"]
