"""Report: results.json -> one HTML file without any request to elsewhere, light and dark, for people. Pure: results in, text out.

document     the page: templates/page.html.j2 and what it includes, through Jinja2, which escapes all that it is given
judgement    what the results say about fine-tuning, in words: the verdict, five reasons for it, two against
scores       rows of the tables with intervals: contenders, gains, the judge's verdicts
benchmarks   rows of the table of public benchmarks
parts        losses, tokens, findings in the data, facts
samples      which answers are shown, and which kind each is
differences  where an answer differs from the expected one
drawings     places and ticks of the drawings
reading      finds values in the results
words        numbers and names in words
"""

from finetune_trainer.report.document import page
from finetune_trainer.report.samples import choose

__all__ = ["choose", "page"]
