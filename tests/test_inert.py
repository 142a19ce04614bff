"""`sanitize`: nothing that a model says acts on a terminal, hides from a reader or escapes from
HTML.
"""

from __future__ import annotations

import sys
import unicodedata
from html.parser import HTMLParser

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ondevice.common.sanitize import LIMIT, SanitizedStream, sanitize, sanitize_html

# what it is, the text, what is shown
HOSTILE = [
    ("clear the screen", "\x1b[2J\x1b[H", "␛[2J␛[H"),
    ("colours", "\x1b[31mred\x1b[0m", "␛[31mred␛[0m"),
    ("window title (OSC 0)", "\x1b]0;owned\x07", "␛]0;owned␇"),
    ("clipboard (OSC 52)", "\x1b]52;c;cm0gLXJm\x07", "␛]52;c;cm0gLXJm␇"),
    (
        "hyperlink (OSC 8)",
        "\x1b]8;;http://x\x1b\\text\x1b]8;;\x1b\\",
        "␛]8;;http://x␛\\text␛]8;;␛\\",
    ),
    ("device control (DCS)", "\x1bP$q\x22p\x1b\\", '␛P$q"p␛\\'),
    ("status report", "\x1b[6n\x1b[c", "␛[6n␛[c"),
    ("alternate screen", "\x1b[?1049h", "␛[?1049h"),
    ("mouse reporting", "\x1b[?1003h", "␛[?1003h"),
    ("terminal reset", "\x1bc", "␛c"),
    ("one-byte CSI", "\x9b2J", "\\u009b2J"),
    ("one-byte OSC and ST", "\x9d0;x\x9c", "\\u009d0;x\\u009c"),
    ("next line (C1)", "a\x85b", "a\\u0085b"),
    ("NUL", "a\x00b", "a␀b"),
    ("bell", "\x07", "␇"),
    ("backspaces over a word", "safe\x08\x08\x08\x08evil", "safe␈␈␈␈evil"),
    ("carriage return over a line", "safe\revil", "safe␍evil"),
    ("CRLF", "a\r\nb", "a␍\nb"),
    ("vertical tab and form feed", "a\x0bb\x0cc", "a␋b␌c"),
    ("shift out (other character set)", "\x0eabc\x0f", "␎abc␏"),
    ("delete", "a\x7f", "a␡"),
    ("tab", "a\tb", "a    b"),
    ("end of medium and substitute", "\x19\x1a", "␙␚"),
    ("right-to-left override", "txt.\u202egnp.exe", "txt.\\u202egnp.exe"),
    ("bidi isolates", "\u2066a\u2067b\u2068c\u2069", "\\u2066a\\u2067b\\u2068c\\u2069"),
    ("bidi marks", "\u200ea\u200fb\u061cc", "\\u200ea\\u200fb\\u061cc"),
    ("zero-width space", "pay\u200bpal", "pay\\u200bpal"),
    ("word joiner and invisible operators", "a\u2060b\u2061\u2064", "a\\u2060b\\u2061\\u2064"),
    ("byte order mark inside", "a\ufeffb", "a\\ufeffb"),
    ("soft hyphen", "pass\xadword", "pass\\u00adword"),
    ("joiner between Latin letters", "a\u200db", "a\\u200db"),
    ("a run of joiners", "é\u200d\u200cé", "é\\u200d\\u200cé"),
    ("joiners at the ends", "\u200dé\u200c", "\\u200dé\\u200c"),
    ("line separator", "a\u2028b", "a\\u2028b"),
    ("paragraph separator", "a\u2029b", "a\\u2029b"),
    ("lone high surrogate", "a\ud800b", "a\\ud800b"),
    ("lone low surrogate", "a\udfffb", "a\\udfffb"),
    ("text in tag characters", "hi\U000e0068\U000e0069", "hi\\U000e0068\\U000e0069"),
    ("bytes in variation selectors", "😀\U000e0101\U000e0122", "😀\\U000e0101\\U000e0122"),
    ("interlinear annotation", "a\ufff9b\ufffac\ufffb", "a\\ufff9b\\ufffac\\ufffb"),
    ("grapheme joiner", "a\u034fb", "a\\u034fb"),
    ("Mongolian vowel separator", "a\u180eb", "a\\u180eb"),
    ("format of music", "\U0001d173", "\\U0001d173"),
]

INNOCENT = [
    "plain text, with punctuation: [/], [b], <b>, %s, {x}, \\n",
    "two\nlines\n",
    "Ångström, naïve, café, cafe\u0301",
    "Привет, 世界, こんにちは, 안녕하세요",
    "שלום ומרחבא مرحبا",
    "می\u200cخواهم",  # Persian needs the non-joiner
    "क्\u200dष",  # Devanagari needs the joiner
    "👩\u200d👩\u200d👧\u200d👦 ❤\ufe0f\u200d🔥 🇩🇪 👍🏽",
    "\u0600123 \u06dd",  # Arabic signs that stand before numbers are seen, though Unicode calls them format characters
]

anything = st.text(st.characters(exclude_categories=()), max_size=80)  # surrogates too
nasty = st.text(
    st.sampled_from("ab é\x1b\x00\t\n\r\x9b\u200c\u200d\u202e\u2028\ud800\ufeff\U000e0041م😀"),
    max_size=40,
)


def acts(text: str) -> set[str]:
    """The characters of `text` that act or hide, by Unicode's own categories."""
    return {c for c in text if unicodedata.category(c) in ("Cc", "Cs", "Zl", "Zp") and c != "\n"}


@pytest.mark.parametrize(
    ("text", "shown"), [case[1:] for case in HOSTILE], ids=[case[0] for case in HOSTILE]
)
def test_hostile_text_is_shown_not_obeyed(text: str, shown: str) -> None:
    assert sanitize(text) == shown
    shown.encode()  # goes through UTF-8


@pytest.mark.parametrize("text", INNOCENT)
def test_innocent_text_is_left_alone(text: str) -> None:
    assert sanitize(text) == text


def test_there_are_forty_hostile_strings() -> None:
    assert len({text for _, text, _ in HOSTILE}) >= 40


def test_every_control_and_format_character_of_unicode_is_covered() -> None:
    seen_before_numbers = {
        "\u0600",
        "\u0601",
        "\u0602",
        "\u0603",
        "\u0604",
        "\u0605",
        "\u06dd",
        "\u070f",
        "\u0890",
        "\u0891",
        "\u08e2",
        "\U000110bd",
        "\U000110cd",
    }
    missed = [
        f"{ord(c):x}"
        for c in map(chr, range(sys.maxunicode + 1))
        if unicodedata.category(c) in ("Cc", "Cf", "Cs", "Zl", "Zp")
        and c not in seen_before_numbers
        and c != "\n"
        and c in sanitize(f"a{c}a")
    ]
    assert missed == []


def test_newlines_are_kept_or_shown() -> None:
    assert sanitize("a\nb\n") == "a\nb\n"
    assert sanitize("a\nb\n", newlines=False) == "a␊b␊"


@given(anything | nasty)
def test_nothing_acts_and_a_second_pass_changes_nothing(text: str) -> None:
    shown = sanitize(text)
    assert not acts(shown)
    assert sanitize(shown) == shown
    assert "\n" not in sanitize(text, newlines=False)


LONG = ["x" * (LIMIT + 1), "\u202e" * LIMIT, "x" * 1_000_000, "\n" * 50_000, "é\u200d" * LIMIT]


@pytest.mark.parametrize("text", LONG, ids=["just", "bidi", "line", "lines", "joiners"])
def test_long_text_is_cut_and_says_so(text: str) -> None:
    shown = sanitize(text)
    assert len(shown) <= LIMIT
    kept, cut = shown.rsplit("… ", 1)
    assert cut.endswith(" more characters")
    left = int(cut.split()[0].replace(",", ""))
    assert kept == sanitize(text[: len(text) - left], limit=None)
    assert sanitize(shown) == shown


def test_text_of_exactly_the_limit_is_whole_and_no_limit_is_none() -> None:
    assert sanitize("x" * LIMIT) == "x" * LIMIT
    assert sanitize("x" * 10, limit=None) == "x" * 10
    assert len(sanitize("y" * (3 * LIMIT), limit=None)) == 3 * LIMIT
    for limit in range(30):
        assert len(sanitize("z" * 40, limit=limit)) <= limit


@given(st.lists(nasty | anything, max_size=8))
def test_a_stream_shows_what_the_whole_text_shows(pieces: list[str]) -> None:
    for newlines in (True, False):
        stream = SanitizedStream(newlines=newlines)
        shown = "".join(stream.push(piece) for piece in pieces) + stream.flush()
        assert shown == sanitize("".join(pieces), newlines=newlines, limit=None)


@given(nasty)
def test_a_stream_of_single_characters(text: str) -> None:
    stream = SanitizedStream()
    assert "".join(map(stream.push, text)) + stream.flush() == sanitize(text)
    assert stream.push("a\x1b") == "a␛"  # flush begins anew


def test_a_stream_holds_back_only_a_joiner() -> None:
    stream = SanitizedStream()
    assert stream.push("👩") == "👩"
    assert stream.push("\u200d") == ""
    assert stream.push("👧") == "\u200d👧"
    assert stream.push("\u200d") == ""
    assert stream.push("x") == "\\u200dx"
    assert stream.push("\x1b") == "␛"
    assert stream.push("[0m") == "[0m"


MARKUP = ["<script>alert(1)</script>", "&lt;b&gt;", "\" onload='x'", "</pre><img src=x>"]


@given(anything | nasty | st.sampled_from(MARKUP))
def test_html_holds_no_tag_and_reads_back_as_the_inert_text(text: str) -> None:
    class Reader(HTMLParser):
        def __init__(self) -> None:
            super().__init__(convert_charrefs=True)
            self.tags: list[str] = []
            self.text = ""

        def handle_starttag(self, tag: str, attrs: object) -> None:
            self.tags.append(tag)

        def handle_endtag(self, tag: str) -> None:
            self.tags.append(tag)

        def handle_data(self, data: str) -> None:
            self.text += data

    quoted = sanitize_html(text)
    assert not set(quoted) & set("<>\"'")
    reader = Reader()
    reader.feed(quoted)
    reader.close()
    assert (reader.tags, reader.text) == ([], sanitize(text))
