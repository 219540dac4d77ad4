"""Report: results.json -> one self-contained HTML file, light and dark. Pure: results in, text out.

document     the page: templates/page.html.j2 and what it includes, through Jinja2, which escapes every value
judgement    what the results say about fine-tuning: the verdict, five reasons for it, two against
ladder       the methods from a prompt to pre-training, a row for each
scores       rows of the tables with intervals: contenders, gains, the judge's verdicts
benchmarks   rows of the table of public benchmarks
parts        losses, tokens, findings in the data, facts
samples      the answers that are shown, by kind
differences  where an answer differs from the expected one
drawings     positions and ticks of the drawings
reading      finds values in the results
words        numbers and names in words
"""

from finetune_trainer.report.document import page
from finetune_trainer.report.samples import choose

__all__ = ["choose", "page"]
