"""Names glued to whatever people glue to them: the name alone is a possible answer, in every tokenizer."""

import re
import unicodedata
from itertools import pairwise

import pytest

from mnerqg.inputs.borders import kinds, readable, word_edges
from mnerqg.inputs.text import EncodedText, TextEncoder
from mnerqg.schema import Span
from tests.builders import QUERIES
from tests.encoders import TOKENIZERS, family_tokenizer

GLUED = [
    *("🔥", "❤️", "📍", "→", "★", "™", "®", "♥", "²", "½", "①", "€", "+", "^", "´", "…", "—", "|", "<", "~"),
    *(
        "“",
        "”",
        "‘",
        "’",
        "ʼ",
        "«",
        "»",
        "„",
        "(",
        ")",
        "（",
        "）",
        "！",
        "「",
        "」",
        "【",
        "』",
        "〉",
        "؟",
        "،",
        "।",
    ),
    *("\x0b", "\x0c", "\x1f", "\x7f", "\x85", "\u2028", "\u00a0", "\u3000", "\u3164", "\u2800"),
    *("\u200b", "\ufeff", "\u200e", "\u200f", "\u202a", "\u202c", "\u2066", "\u2069"),
    *("👩\u200d👩\u200d👧", "👍🏽", "🇩🇪", "🏴\U000e0067\U000e0062\U000e007f", "1️⃣", "#️⃣", "ℹ️", "㊙️", "🅰️", "〰️"),
    *("\uf8ff", "\U0001fae8", "\U0001faea", "\ufffd", "_", "#", "@", "/", "'", '"', "\\", "*", "&", "%", "$"),
]
# What joins letters, and beside a name is nothing that anybody sees.
STRAY = ["\u200d", "\u200c", "\u2060", "\u00ad", "\ufe0f", "\ufe0e"]
# As people post them; the names are marked.
POSTED = [
    "so proud of [Hugo Marchetti] tonight",
    "so proud of [Hugo Marchetti]🔥 tonight",
    "so proud of ❤️[Hugo Marchetti]❤️ tonight",
    "Traffic is terrible in 📍[Southville Valley] today",
    "Road trip from [Southville Valley]→[Port Lindenhaven] with the girls",
    "so proud of “[Hugo Marchetti]” (tonight)",
    "[Hugo Marchetti] " + "wow! " * 800_000,
    "[Hugo]\x0b[Marchetti]\x0c[Southville]\r\n[Valley]",
    "([London]) #[London] @[London] [London]'s [London]’s [London], [London]🎉[London]–[Oslo]/«[London]»",
]
NAMES = ["Hugo Marchetti", "Zürich", "北京", "שָׁלוֹם"]


def unmarked(marked: str) -> tuple[str, list[Span]]:
    """The text, and the spans of the names that are in brackets."""
    text, spans = "", []
    for number, part in enumerate(re.split(r"[\[\]]", marked)):
        if number % 2:
            spans.append(Span(len(text), len(text) + len(part), "PER"))
        text += part
    return text, spans


def glued() -> list[tuple[str, Span]]:
    """Texts with a name that has something beside it on the left, on the right, or on both sides."""
    found = [(text, span) for marked in POSTED for text, spans in [unmarked(marked)] for span in spans]
    for number, symbol in enumerate(GLUED + STRAY):
        name = NAMES[number % 2]
        for left, right in ((symbol, ""), ("", symbol), (symbol, symbol)):
            start = len("so ") + len(left)
            found.append((f"so {left}{name}{right} tonight", Span(start, start + len(name), "PER")))
    for symbol in GLUED:
        for name in NAMES:
            second = len(name + symbol)
            found.append((f"{name}{symbol}{name}", Span(0, len(name), "PER")))
            found.append((f"{name}{symbol}{name}", Span(second, second + len(name), "PER")))
    return found


def pieces_of(encoded: EncodedText, span: Span) -> tuple[int, int] | None:
    """The first and last piece of an answer with exactly these offsets, if there can be one."""
    firsts = [i for i, yes in enumerate(encoded.begins_word) if yes and encoded.starts[i] == span.start]
    lasts = [j for j, yes in enumerate(encoded.ends_word) if yes and encoded.ends[j] == span.end]
    return (firsts[0], lasts[0]) if firsts and lasts else None


@pytest.mark.parametrize("family", TOKENIZERS)
def test_a_name_alone_is_a_possible_answer(family: str) -> None:
    """Before, ² ½ ① and keycaps stuck to names, a zero-width space after a name was part of it, and tokenizers that
    normalise read Hugo™ as hugotm."""
    encoder = TextEncoder(tokenizer=family_tokenizer(family), queries=QUERIES, max_length=128)
    missed = [ascii(text) for text, span in glued() if pieces_of(encoder.encode(text), span) is None]
    assert missed == []


@pytest.mark.parametrize("family", TOKENIZERS)
def test_symbols_of_all_of_unicode_part_names(family: str) -> None:
    encoder = TextEncoder(tokenizer=family_tokenizer(family), queries=QUERIES, max_length=128)
    parting = [
        character
        for character in map(chr, range(0xA1, 0x20000))
        if kinds(f"a{character}b")[1] in "s " and unicodedata.category(character) not in ("Cn", "Co", "Cs")
    ]
    assert len(parting) > 5000
    start = sorted(TOKENIZERS).index(family)  # each family sees others
    for character in parting[start :: 5 * len(TOKENIZERS)]:
        encoded = encoder.encode(f"so {character}Hugo{character}Ada")
        assert pieces_of(encoded, Span(4, 8, "PER")), ascii(character)
        assert pieces_of(encoded, Span(9, 12, "PER")), ascii(character)


def words(text: str) -> list[str]:
    of_text = kinds(text)
    assert len(of_text) == len(text)
    places = [place for place, is_edge in enumerate(word_edges(of_text)) if is_edge]
    parts = [text[start:end] for start, end in pairwise(places)]
    return [part for part in parts if set(kinds(part)) != {" "}]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Hugo🔥 in 北京!", ["Hugo", "🔥", "in", "北", "京", "!"]),
        ("e\u0301te\u0301", ["e\u0301te\u0301"]),
        ("Mar\u00adchetti می\u200cخواهم", ["Mar\u00adchetti", "می\u200cخواهم"]),
        ("ക്\u200d ര\u200d്യ", ["ക്\u200d", "ര\u200d്യ"]),
        ("Hugo\u200d\ufe0f Ada\u200d🔥", ["Hugo", "Ada", "🔥"]),
        ("\ufe0fHugo ❤️Ada", ["Hugo", "❤️", "Ada"]),
        ("top1️⃣Ada room 12 9\ufe0f", ["top", "1️⃣", "Ada", "room", "12", "9"]),
        ("Ada's Hawaiʻi", ["Ada", "'", "s", "Hawai", "ʻ", "i"]),
        ("東京タワー ロンドン", ["東", "京", "タワー", "ロンドン"]),
        ("H₂O ⅣⅤ x²", ["H", "₂", "O", "ⅣⅤ", "x", "²"]),
        ("\U000313aa\U000313ab \U0001faea", ["\U000313aa", "\U000313ab", "\U0001faea"]),
        ("", []),
    ],
)  # fmt: skip
def test_words(text: str, expected: list[str]) -> None:
    assert words(text) == expected


def test_a_tokenizer_reads_blanks_where_there_are_some() -> None:
    text = "Hugo\x0bMarchetti\u200b\u202aAda\u202c né\u00ad"
    assert readable(text, kinds(text)) == "Hugo Marchetti  Ada  né "


@pytest.mark.parametrize("family", ["bert", "nfkc"])
def test_what_was_one_word_for_the_tokenizer_is_read_as_two(family: str) -> None:
    """The pieces are those of the words apart, not of hugomarchetti or adatm."""
    encoder = TextEncoder(tokenizer=family_tokenizer(family), queries=QUERIES, max_length=128)
    for text, apart in (("Ada\x0bLovelace", "Ada Lovelace"), ("Ada²Lovelace", "Ada ² Lovelace")):
        assert encoder.encode(text).token_ids == encoder.encode(apart).token_ids
