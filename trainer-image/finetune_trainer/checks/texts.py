"""Row rules that search the texts for patterns: secrets, personal data, refusals, special tokens.

Every pattern has literal parts that a plain search finds quickly; the regular expressions run only where one occurs.
"""

import dataclasses
import re
from collections.abc import Callable, Iterator
from typing import Any

from finetune_trainer.checks import rule
from finetune_trainer.data import dataset


@dataclasses.dataclass(frozen=True)
class Pattern:
    """A named pattern. `near`: a text without any of these has no match; `real`: whether a match is more than a placeholder."""

    name: str
    near: tuple[str, ...]
    form: re.Pattern[str]
    real: Callable[[str], bool] = lambda _: True

    def found(self, text: str) -> bool:
        return any(word in text for word in self.near) and any(
            self.real(match[0]) for match in self.form.finditer(text)
        )


@dataclasses.dataclass(frozen=True)
class Patterns:
    """Fires where a text matches one of some patterns."""

    id: str
    patterns: tuple[Pattern, ...]

    def fires(self, row: rule.TokenizedExample) -> bool:
        text = row.text
        return any(pattern.found(text) for pattern in self.patterns)

    def words(self, example: dataset.Example) -> str:
        """The names of the patterns; never the match itself."""
        text = rule.TokenizedExample(example, NO_TOKENS).text
        return ", ".join(pattern.name for pattern in self.patterns if pattern.found(text))


NO_TOKENS: Any = None


# --- Secrets ---


def _mixed(text: str) -> bool:
    """Has letters and digits, and is not marked as an example."""
    plain = text.lower()
    return (
        any(letter.isdigit() for letter in text)
        and not any(word in plain for word in ("example", "xxxx", "your", "1234567890"))
        and len(set(plain)) > 8
    )


def _password(text: str) -> bool:
    secret = text.split("://", 1)[1].rsplit("@", 1)[0].partition(":")[2]
    placeholders = ("password", "passwd", "pass", "secret", "token", "pwd", "changeme")
    return bool(secret) and secret.lower() not in placeholders and secret[0] not in "<$*{[%x"


SECRETS = Patterns(
    "secrets",
    (
        Pattern("an AWS access key", ("AKIA", "ASIA"), re.compile(r"\b(?:AKIA|ASIA)[0-9A-Z]{16}\b"), _mixed),
        Pattern(
            "a GitHub token",
            ("ghp_", "gho_", "ghu_", "ghs_", "ghr_", "github_pat_"),
            re.compile(r"\b(?:gh[pousr]_[A-Za-z0-9]{36,}|github_pat_[A-Za-z0-9_]{50,})"),
            _mixed,
        ),
        Pattern("a GitLab token", ("glpat-",), re.compile(r"\bglpat-[A-Za-z0-9_-]{20,}"), _mixed),
        Pattern("a Slack token", ("xox",), re.compile(r"\bxox[abeprs]-[A-Za-z0-9-]{16,}"), _mixed),
        Pattern("a Google API key", ("AIza",), re.compile(r"\bAIza[0-9A-Za-z_-]{35}"), _mixed),
        Pattern("an API key (sk-…)", ("sk-",), re.compile(r"\bsk-[A-Za-z0-9_-]{32,}"), _mixed),
        Pattern("a Stripe key", ("k_live_",), re.compile(r"\b[sr]k_live_[0-9A-Za-z]{20,}"), _mixed),
        Pattern("a Hugging Face token", ("hf_",), re.compile(r"\bhf_[A-Za-z0-9]{30,}"), _mixed),
        Pattern(
            "a package registry's token",
            ("npm_", "pypi-"),
            re.compile(r"\b(?:npm_[A-Za-z0-9]{36}\b|pypi-[A-Za-z0-9_-]{60,})"),
            _mixed,
        ),
        Pattern("a private key", ("PRIVATE KEY",), re.compile(r"-----BEGIN (?:[A-Z]+ )*PRIVATE KEY(?: BLOCK)?-----")),
        Pattern(
            "a JSON web token",
            ("eyJ",),
            re.compile(r"\beyJ[A-Za-z0-9_-]{10,}\.eyJ[A-Za-z0-9_-]{10,}\.[A-Za-z0-9_-]{10,}"),
            _mixed,
        ),
        Pattern(
            "a URL with a password",
            ("://",),
            re.compile(r"\b[a-z][a-z0-9+.-]{1,20}://[^\s/:@\"'<>]{1,64}:[^\s/:@\"'<>]{3,128}@[A-Za-z0-9]"),
            _password,
        ),
    ),
)


# --- Personal data ---


def _someone(address: str) -> bool:
    domain = address.rpartition("@")[2].lower()
    reserved = ("example", "test", "invalid", "localhost")  # RFC 2606
    return domain.split(".")[-1] not in reserved and not re.search(r"(^|\.)example\.(com|org|net)$", domain)


def _phone(number: str) -> bool:
    digits = [letter for letter in number if letter.isdigit()]
    return 9 <= len(digits) <= 15 and len(set(digits)) > 3


def _iban(text: str) -> bool:
    """The check digits of ISO 13616."""
    compact = text.replace(" ", "")
    if not 15 <= len(compact) <= 34:
        return False
    return int("".join(str(int(letter, 36)) for letter in compact[4:] + compact[:4])) % 97 == 1


_ISSUERS = re.compile(r"4(\d{12}|\d{15}|\d{18})|5[1-5]\d{14}|2[2-7]\d{14}|3[47]\d{13}|6(?:011|5\d\d)\d{12}")
_FOR_TESTS = {"4111111111111111", "4242424242424242", "5555555555554444", "378282246310005"}


def _card(text: str) -> bool:
    """The form of an issuer's numbers, and the check digit of ISO 7812."""
    digits = re.sub(r"\D", "", text)
    if not _ISSUERS.fullmatch(digits) or digits in _FOR_TESTS:
        return False
    doubled = [int(digit) * (1 + index % 2) for index, digit in enumerate(reversed(digits))]
    return sum(number - 9 if number > 9 else number for number in doubled) % 10 == 0


_DIGITS = tuple("0123456789")

PERSONAL_DATA = Patterns(
    "personalData",
    (
        Pattern(
            "an e-mail address",
            ("@",),
            re.compile(r"\b[A-Za-z0-9._%+-]{1,64}@(?:[A-Za-z0-9-]{1,63}\.)+[A-Za-z]{2,24}\b"),
            _someone,
        ),
        Pattern(
            "a phone number", ("+",), re.compile(r"(?<![\w+])\+\d{1,3}(?:[ ./-]?\(?\d{1,5}\)?){2,6}(?!\w)"), _phone
        ),
        Pattern("an IBAN", _DIGITS, re.compile(r"\b[A-Z]{2}\d{2}(?: ?[A-Z0-9]{4}){2,7}(?: ?[A-Z0-9]{1,3})?\b"), _iban),
        Pattern("a payment card", _DIGITS, re.compile(r"(?<![\w.-])\d(?:[ -]?\d){12,18}(?![\w-])"), _card),
    ),
)


# --- Refusals ---

_SORRY = (
    "sorry",
    "apologi",
    "cannot",
    "can't",
    "can’t",
    "unable",
    "not able",
    "désol",
    "leid",
    "leider",
    "siento",
    "dispiace",
    "desculp",
)
_SELF = (
    "as an ai",
    "as a language model",
    "as a large language model",
    "i am an ai",
    "i'm an ai",
    "en tant qu'ia",
    "als ki-",
    "como ia",
)
_AIS = re.compile(
    r"\b(?:as an? (?:ai\b|(?:large )?language model)|i(?:['’]m| am) (?:just |only )?an ai\b|en tant qu['’]ia\b|als (?:ein )?ki-"
    r"|como (?:una )?ia\b)",
    re.IGNORECASE,
)
_REFUSAL = re.compile(
    r"\bi(?:['’]m| am)? (?:sorry|afraid),?(?: but)? (?:i|we) (?:cannot|can['’]?t|am unable|am not able|won['’]?t)\b"
    r"|\bi(?:['’]m| am)? (?:sorry|afraid),? but (?:as an?|that['’]?s not something)\b"
    r"|\bi (?:cannot|can['’]?t|am unable to|am not able to|won['’]?t(?: be able to)?) "
    r"(?:assist|help|comply|fulfil|provide|answer|generate|create|engage|discuss|do that)"
    r"|\bi apologi[sz]e,? but (?:i|as an?)\b"
    r"|\bje suis désolée?,? (?:mais )?je ne (?:peux|suis)|\bje ne peux pas (?:vous aider|répondre)"
    r"|\btut mir leid,? (?:aber )?(?:ich kann|das kann ich)|\bich kann (?:ihnen |dir )?(?:dabei |damit |hierbei )?leider nicht"
    r"|\blo siento,? (?:pero )?no puedo|\bmi dispiace,? (?:ma )?non posso|\bdesculpe,? (?:mas )?não posso",
    re.IGNORECASE,
)
BEGINNING = 300
"""Characters of an answer in which a refusal is searched."""


@dataclasses.dataclass(frozen=True)
class Refusals:
    id: str = "refusals"

    def fires(self, row: rule.TokenizedExample) -> bool:
        return any(refuses(answer) for answer in row.answers)

    def words(self, example: dataset.Example) -> str:
        return ""


def refuses(answer: str) -> bool:
    plain = answer.lower()
    if any(word in plain for word in _SELF) and _AIS.search(answer):
        return True
    return any(word in plain[:BEGINNING] for word in _SORRY) and bool(_REFUSAL.search(answer[:BEGINNING]))


# --- Special tokens ---


@dataclasses.dataclass(frozen=True)
class SpecialTokens:
    """Fires where a turn has a special token of the model in its text."""

    form: re.Pattern[str] | None
    near: tuple[str, ...]
    id: str = "specialTokens"

    def fires(self, row: rule.TokenizedExample) -> bool:
        text = row.text
        return self.form is not None and any(start in text for start in self.near) and bool(self.form.search(text))

    def words(self, example: dataset.Example) -> str:
        found = self.form.search(rule.TokenizedExample(example, NO_TOKENS).text) if self.form else None
        return found[0] if found else ""


def special_tokens(tokenizer: Any) -> SpecialTokens:
    """The rule for a tokenizer's special tokens, without those that are white space."""
    names = {str(token) for token in _special(tokenizer) if len(str(token).strip()) > 1}
    ordered = sorted(names, key=lambda name: (-len(name), name))
    form = re.compile("|".join(map(re.escape, ordered))) if ordered else None
    return SpecialTokens(form, tuple(sorted({name[:2] for name in names})))


def _special(tokenizer: Any) -> Iterator[Any]:
    yield from getattr(tokenizer, "all_special_tokens", ())
    for token in getattr(tokenizer, "added_tokens_decoder", {}).values():
        if token.special:
            yield token.content
