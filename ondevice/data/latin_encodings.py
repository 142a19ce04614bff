"""Which encoding of one byte a letter a text in Latin letters is of, by the letters beyond ASCII that
its language has: French in Windows-1252, read as Windows-1250, has letters of five languages.
"""

from __future__ import annotations

from collections import Counter

_ENCODINGS = ("cp1252", "cp1250", "iso8859_2", "cp1257", "cp1254", "mac_roman", "cp850", "cp852")
"""Those that people have such texts in, the usual ones first: one that reads a text as well stands."""
_LETTERS = {
    "French": "àâæçéèêëîïôœùûüÿ",
    "German": "äöüßé",
    "Spanish": "áéíñóúüªº",
    "Catalan": "àçéèíïòóúü·",
    "Portuguese": "áâãàçéêíóôõúüªº",
    "Italian": "àèéìíîòóùú",
    "Dutch": "áéëïóöüèê",
    "Swedish, Finnish": "åäöéüàšž",
    "Danish, Norwegian": "æøåéèêóòôâäöü",
    "Icelandic": "áðéíóúýþæö",
    "Irish": "áéíóú",
    "Estonian": "äõöüšž",
    "Polish": "ąćęłńóśźż",
    "Czech": "áčďéěíňóřšťúůýž",
    "Slovak": "áäčďéíĺľňóôŕšťúýž",
    "Hungarian": "áéíóöőúüű",
    "Romanian": "ăâîșțşţ",
    "Croatian, Slovene": "čćđšž",
    "Albanian": "çë",
    "Lithuanian": "ąčęėįšųūž",
    "Latvian": "āčēģīķļņšūž",
    "Turkish": "çğıiîöşüâû",
}
_SIGNS = frozenset("\u00a0«»‘’‚“”„–—…•·°§©®™€£¿¡×½¼¾²³µ†‹›")
"""Beyond ASCII too, and of no language."""
_LEAST = 0.9  # of the letters beyond ASCII: a name may be of another language
_BETTER = 0.05  # more of them than the usual encoding has
_MOST_BEYOND = 0.4
"""Share of letters that are beyond ASCII, of which a text in other letters has more."""


def latin_encoding(sample: bytes) -> str:
    """The encoding in which the letters of a text are most nearly those of one language; empty where
    there is none: a text in other letters, or in a language that is not known here."""
    best, most = "", _LEAST - _BETTER
    for encoding in _ENCODINGS:
        share = _of_one_language(sample.decode(encoding, "replace"))
        if share >= most + _BETTER:
            best, most = encoding, share
    return best


def _of_one_language(text: str) -> float:
    """The largest share of what is beyond ASCII, signs apart, that are letters of one language."""
    counted = Counter(letter for letter in text.lower() if letter > "\x7f" and letter not in _SIGNS)
    beyond = sum(counted.values())
    plain = sum(letter.isalpha() and letter < "\x80" for letter in text)
    if not beyond:
        return 1.0  # nothing but signs
    if beyond > _MOST_BEYOND * (beyond + plain):
        return 0.0
    return max(sum(counted[letter] for letter in those) for those in _LETTERS.values()) / beyond
