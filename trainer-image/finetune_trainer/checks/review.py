"""The review of a job's examples: one pass over the rows, then all rules, in the order of the API's table.

review = Review(policies, tokenizer, stops)
review.broken(bad) / review.take(part, example, details)      as the rows are read
reviewed = review.apply_rules(corpus, source)                        which rows stay, and the findings
reviewed.after_split(place)                                   the rules that need the split
"""

import dataclasses
import re
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from finetune_api import checks as api
from finetune_trainer.checks import answers, calls, encodings, repeats, rule, table, texts
from finetune_trainer.data import corpus, dataset, rows, tokens

PLACES = 20
"""Places that a finding lists; also the number of broken rows after which reading stops if they end the job."""

MANY = 1000
"""Different fields that nothing reads, after which no further examples of them are counted."""

LONGEST = 120
"""Characters of a place in the status."""

MINIMUM_SHARE = {"truncation": 0.05, "nearDuplicates": 0.05, "nearLeakage": 0.05}
"""Shares below which a rule reports nothing, as they change little; rows are dropped all the same."""

APART = ("nearLeakage", "unusedFields")
"""Rules beside the row rules and the table rules that apply before the split."""

FIELDS_SHOWN = 8
"""Unused fields that a message names, the most frequent first."""

_FOLDER = re.compile(r"\b[a-z0-9]+://\S*/")

TableRule = Callable[[table.Table, rule.Mask], rule.Hits]

TABLE_RULES: dict[str, TableRule] = {
    "duplicates": repeats.duplicates,
    "nearDuplicates": repeats.near_duplicates,
    "contradictions": repeats.contradictions,
    "leakage": repeats.leakage,
    "labelImbalance": answers.label_imbalance,
    "constantAnswers": answers.constant_answers,
    "jsonAnswers": answers.json_answers,
    "cutAnswers": answers.cut_answers,
    "reasoningTags": answers.reasoning_tags,
    "languageMix": answers.language_mix,
}

MESSAGES = {
    "secrets": "contain what looks like a secret",
    "personalData": "contain what looks like personal data",
    "refusals": "have an answer that refuses or calls itself an AI",
    "specialTokens": "have a special token of the model in their text",
    "stopToken": "have a learned answer that does not end with a stop token",
    "doubleBos": "begin with two begin-of-sequence tokens",
    "toolArguments": "call a tool with arguments that do not fit its parameters",
    "promptPrefix": "have an answer that would merge with its prompt's last token",
}


@dataclasses.dataclass(frozen=True)
class Finding:
    """The result of a rule, and what was done about it."""

    rule: str
    policy: api.Policy
    count: int
    """Rows (of a rule about the data as a whole: 1)."""
    message: str
    """The result in words, without a full stop."""
    places: tuple[str, ...]
    """The first ones: `uri:line`, some with a short description."""
    dropped: int = 0
    """Rows left out."""
    share: float = 1.0
    """Of the rows that the rule checked; 1 for the data as a whole and for broken rows."""

    @property
    def severity(self) -> api.Severity:
        return api.BY_ID[self.rule].severity

    def line(self, shown: int = 3) -> str:
        """The finding for the status: one line, a few places, without their folders."""
        more = self.count - shown if len(self.places) > shown else 0
        places = "; ".join(_short(_FOLDER.sub("", place)) for place in self.places[:shown]) + (
            f"; and {more} more" if more > 0 else ""
        )
        dropped = f"; {self.dropped} left out" if self.dropped else ""
        return f"{self.rule}: {self.message}{dropped}" + (f": {places}" if places else "")

    def document(self) -> dict[str, Any]:
        """The finding for preflight.json."""
        known = api.BY_ID[self.rule]
        facts = {
            **dataclasses.asdict(self),
            "severity": known.severity,
            "places": list(self.places),
            "line": self.line(),
        }
        return {**facts, "means": f"{known.means} {known.matters}", "advice": known.advice}


def _short(place: str) -> str:
    return place if len(place) <= LONGEST else place[: LONGEST - 1] + "…"


Sources = Callable[[rule.Rows], Mapping[int, dataset.Example]]
"""The examples of a few rows, read again."""


class Review:
    """Collects columns and broken rows while the files are read."""

    def __init__(self, chosen: Mapping[str, api.Policy], encoder: tokens.Encoder) -> None:
        self.policies = {known.id: api.policy(dict(chosen), known.id) for known in api.RULES}
        every: tuple[rule.RowRule, ...] = (
            encodings.StopToken(encoder),
            encodings.PromptPrefix(),
            encodings.DoubleBos(getattr(encoder.tokenizer, "bos_token_id", None)),
            texts.special_tokens(encoder.tokenizer),
            texts.Refusals(),
            texts.SECRETS,
            texts.PERSONAL_DATA,
            calls.Arguments(),
        )
        self._row_rules = tuple(one for one in every if self._applies(one.id))
        self._builder = table.Builder(
            sketched=self._applies("nearDuplicates") or self._applies("nearLeakage"),
            detect_languages=self._applies("languageMix"),
        )
        self._broken: dict[str, list[rows.Bad]] = {}
        self._counts: dict[str, int] = {}
        self._unused: dict[str, tuple[int, str]] = {}
        """Of each field that nothing reads: how many examples have it, and the place of the first."""
        self._truncated_file = False
        """Whether a file was cut off, so that dropping single rows does not help."""

    def _applies(self, id: str) -> bool:
        return self.policies[id] is not api.Policy.IGNORE

    def broken(self, bad: rows.Bad) -> None:
        """Records a row that is not an example."""
        self._counts[bad.rule] = self._counts.get(bad.rule, 0) + 1
        found = self._broken.setdefault(bad.rule, [])
        if bad.ends:
            self._truncated_file = True
            found.insert(0, bad)
        else:
            found.append(bad)
        del found[PLACES:]

    @property
    def will_fail(self) -> bool:
        """Whether so many rows are broken that the job will fail, and reading more shows nothing new."""
        fatal = (count for id, count in self._counts.items() if self.policies[id] is api.Policy.FAIL)
        return sum(fatal) >= PLACES

    @property
    def taken(self) -> int:
        """Examples so far."""
        return len(self._builder)

    def take(self, part: int, example: dataset.Example, details: tokens.Details) -> None:
        """Adds an example. part: 0 train, 1 validation, 2 test: the files that it came from."""
        for field in example.unused.union(details.omitted) if len(self._unused) < MANY else ():
            count, place = self._unused.get(field, (0, example.source))
            self._unused[field] = count + 1, place
        row = rule.TokenizedExample(example, details)
        fired = sum(1 << bit for bit, one in enumerate(self._row_rules) if one.fires(row))
        self._builder.add(part, fired, row)

    def apply_rules(self, found: corpus.Corpus, sources: Sources) -> "Reviewed":
        """Applies all rules except those that need the split."""
        columns = self._builder.finish(found)
        findings = [*self._about_broken(), *self._about_unused()]
        made = Reviewed(columns, np.ones(len(columns), dtype=bool), self.policies, sources, findings)
        for known in () if self.will_fail else api.RULES:
            if known.scope is api.Scope.BROKEN or known.id in APART or not self._applies(known.id):
                continue
            made.add(known.id, self._hits(known.id, columns, made.keep))
        return made

    def _hits(self, id: str, columns: table.Table, keep: rule.Mask) -> rule.Hits:
        if id in TABLE_RULES:
            return TABLE_RULES[id](columns, keep)
        count = int(keep.sum())
        if id == "untrainable":
            text = "have no token to learn within training.maxSequenceLength"
            return rule.Hits(rule.rows(keep & ~columns.teaching), count, text)
        if id == "truncation":
            text = "are longer than training.maxSequenceLength and are cut"
            return rule.Hits(rule.rows(keep & columns.truncated), count, text)
        bit, one = next((bit, one) for bit, one in enumerate(self._row_rules) if one.id == id)
        fired = keep & ((columns.fired >> np.uint32(bit)) & np.uint32(1) > 0)
        return rule.Hits(rule.rows(fired), count, MESSAGES[id], words=one.words)

    def _about_unused(self) -> list[Finding]:
        id = "unusedFields"
        if not self._unused or not self._applies(id):
            return []
        found = sorted(self._unused.items(), key=lambda one: (-one[1][0], one[0]))
        shown = [f"{_short(field)} ({count} of {self.taken} examples)" for field, (count, _) in found[:FIELDS_SHOWN]]
        more = f" and {len(found) - len(shown)} more" if len(found) > len(shown) else ""
        message = f"nothing reads the field{'s' if len(found) > 1 else ''} {', '.join(shown)}{more}"
        places = tuple(f"{place} ({_short(field)})" for field, (_, place) in found[:PLACES])
        most = max(count for count, _ in self._unused.values())
        return [Finding(id, self.policies[id], len(found), message, places, share=most / self.taken)]

    def _about_broken(self) -> list[Finding]:
        made = []
        for known in api.RULES:
            if known.id not in self._broken:
                continue
            count, bad = self._counts[known.id], self._broken[known.id]
            policy = self.policies[known.id]
            if policy is api.Policy.DROP and any(one.ends for one in bad):
                policy = api.Policy.FAIL
            stopped = " (reading stopped there)" if self.will_fail else ""
            message = (
                f"{count} row{'s are' if count > 1 else ' is'} not {'examples' if count > 1 else 'an example'}{stopped}"
            )
            places = tuple(f"{one.source}: {one.problem}" for one in bad)
            made.append(Finding(known.id, policy, count, message, places, count if policy is api.Policy.DROP else 0))
        return made


@dataclasses.dataclass
class Reviewed:
    """Which rows stay, and why the others do not."""

    columns: table.Table
    keep: rule.Mask
    policies: Mapping[str, api.Policy]
    sources: Sources
    findings: list[Finding]

    def add(self, id: str, hits: rule.Hits) -> rule.Rows:
        """Records a rule's hits and drops its rows where the policy says so; returns the dropped rows."""
        none = np.zeros(0, dtype=np.int64)
        drops = self.policies[id] is api.Policy.DROP
        negligible = len(hits.rows) < MINIMUM_SHARE.get(id, 0) * hits.of and not drops
        if negligible or not len(hits.rows):
            return none
        dropped_rows = (hits.rows if hits.drop is None else hits.drop) if drops else none
        self.keep[dropped_rows] = False
        count = len(hits.rows)
        message = hits.text if hits.whole else f"{count} of {hits.of} examples {hits.text}"
        share = 1.0 if hits.whole else count / hits.of
        self.findings.append(
            Finding(id, self.policies[id], count, message, self._places(hits), len(dropped_rows), share)
        )
        return dropped_rows

    def after_split(self, place: table.Array) -> table.Array:
        """The places (int8: 0 train, 1 validation, 2 test, -1 left out) after the rules that need the split."""
        id = "nearLeakage"
        if self.policies[id] is api.Policy.IGNORE:
            return place
        dropped_rows = self.add(id, repeats.near_leakage(self.columns, place))
        place = place.copy()
        place[dropped_rows] = -1
        order = [known.id for known in api.RULES]
        self.findings.sort(key=lambda finding: order.index(finding.rule))
        return place

    @property
    def failing(self) -> list[Finding]:
        return [finding for finding in self.findings if finding.policy is api.Policy.FAIL]

    def _places(self, hits: rule.Hits) -> tuple[str, ...]:
        first = hits.rows[:PLACES]
        wanted = first if hits.beside is None else np.concatenate([first, hits.beside[:PLACES]])
        examples = self.sources(np.unique(wanted))
        made = []
        for index, row in enumerate(first.tolist()):
            example = examples[row]
            words = hits.words(example) if hits.words else ""
            if hits.beside is not None:
                words = f"like {examples[int(hits.beside[index])].source}"
            made.append(example.source + (f" ({words})" if words else ""))
        return tuple(made)
