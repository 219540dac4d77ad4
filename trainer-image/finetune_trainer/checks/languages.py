"""The language of a text: by its script, and for Latin letters by its function words. Short texts are unknown.

Simple on purpose: a few microseconds per text, and unclear ones are unknown. NAMES lists the languages.
"""

import re

NAMES = (
    "unknown", "English", "German", "French", "Spanish", "Italian", "Portuguese", "Dutch", "Swedish", "Polish", "Turkish",
    "Chinese", "Japanese", "Korean", "a Cyrillic language", "Arabic", "Hebrew", "a Devanagari language", "Thai", "Greek",
)  # fmt: skip

UNKNOWN = 0

LENGTH = 400
"""Characters that are used."""

_WORDS = {
    "English": "the and is are was you your for with that this have not will can our please what from they we would",
    "German": "der die das und ist nicht ein eine ich sie wir mit für auf den dem zu von bitte haben wird sich auch ihre",
    "French": "le la les et est une des vous nous je pas pour dans avec votre que qui sur ce cette être sont merci du au",
    "Spanish": "el la los las es una que por para con su no está usted como más del se lo pero este gracias y muy mi",
    "Italian": "il lo gli è una che per con non sono di della nel questo suo come più anche si ma grazie ho mi dei alla",
    "Portuguese": "o os as é uma que para com não seu sua você como mais do da em por este está obrigado foi um dos ao",
    "Dutch": "de het een en is niet van ik je u wij met voor op dat deze uw zijn heb kunnen maar ook bij wordt naar",
    "Swedish": "och är det att en ett inte jag du vi med för på som har din kan av till den om vill så tack från",
    "Polish": "i w nie na jest się że do z to jak dla czy po są lub tak o ale już pan pani proszę przez od może",
    "Turkish": "ve bir bu için ile de da ne var mı değil çok gibi daha olarak ben siz lütfen ama o kadar sonra olan en",
}
_LATIN = [(NAMES.index(name), frozenset(words.split())) for name, words in _WORDS.items()]

_SCRIPTS = [
    (NAMES.index(name), re.compile(f"[{letters}]"))
    for name, letters in (
        ("Korean", "\uac00-\ud7af"),
        ("Japanese", "\u3040-\u30ff"),
        ("Chinese", "\u4e00-\u9fff"),
        ("a Cyrillic language", "\u0400-\u04ff"),
        ("Arabic", "\u0600-\u06ff"),
        ("Hebrew", "\u0590-\u05ff"),
        ("a Devanagari language", "\u0900-\u097f"),
        ("Thai", "\u0e00-\u0e7f"),
        ("Greek", "\u0370-\u03ff"),
    )
]
_JAPANESE, _CHINESE = NAMES.index("Japanese"), NAMES.index("Chinese")
_WORD = re.compile(r"[^\W\d_]+")


def language(text: str) -> int:
    """The index in NAMES."""
    text = text[:LENGTH]
    if not text.isascii():
        found = _script(text)
        if found != UNKNOWN:
            return found
    words = set(_WORD.findall(text.lower()))
    if len(words) < 5:
        return UNKNOWN
    counted = sorted(((len(known & words), index) for index, known in _LATIN), reverse=True)
    (best, index), (second, _) = counted[:2]
    return index if best >= 3 and best >= 1.5 * second and best >= 0.08 * len(words) else UNKNOWN


def _script(text: str) -> int:
    letters = sum(map(len, _WORD.findall(text)))
    counts = {index: len(form.findall(text)) for index, form in _SCRIPTS}
    counts[_JAPANESE] += counts[_CHINESE] if counts[_JAPANESE] else 0  # Japanese also uses Chinese characters
    index = max(counts, key=lambda key: counts[key])
    return index if counts[index] >= 4 and counts[index] >= 0.5 * letters else UNKNOWN
