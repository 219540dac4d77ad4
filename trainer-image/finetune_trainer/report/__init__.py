"""The report: one HTML file without any request to elsewhere, light and dark, for people. Pure: results in, text out.

results -> judgement (what they say about fine-tuning, in words) -> sections (HTML of each part) -> document (the page)

`reading` finds values in the results, `words` says numbers, `drawings` draws them, `samples` chooses which answers to show,
`differences` marks where they differ, `markup` makes all that users wrote harmless.
"""

from finetune_trainer.report.document import page
from finetune_trainer.report.samples import choose

__all__ = ["choose", "page"]
