"""Where in a text words begin and end, whatever the tokenizer.

A word begins and ends at blanks, where letters or digits meet punctuation or symbols, beside each Chinese character,
and where the tokenizer itself parts words: so "London" is a word of "(London)", "#London", "London's", "London🎉" and
"London," [chosen]. Offsets are code points.

Every code point has a kind, and the kinds of a text are a string of the same length:

    " "  blank: what shows nothing and stands between words, control characters and zero-width spaces too
    "a"  letter or digit
    "i"  Chinese character, a word by itself
    "s"  punctuation, symbol, superscript, private or unknown character: emoji are younger than any table
    "m"  combining mark, which belongs to what it follows
    "j"  joiner: what Unicode calls a format character, and the variation selectors of emoji
"""

import re
import unicodedata
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from tokenizers import Regex
from tokenizers.pre_tokenizers import PreTokenizer, Split
from tokenizers.pre_tokenizers import Sequence as InTurn

# A run of punctuation and symbols, each with the marks and joiners that belong to it. SentencePiece writes a blank as
# ▁, which is a symbol too; a blank stays with what follows it.
_RUN = Regex(r"[▁ ]?(?:[\p{P}\p{S}\p{No}&&[^▁]][\p{M}\p{Cf}]*)+")
# Letters that meet punctuation, a mathematical symbol and an emoji.
_PROBE = "a(b+c👍d"

_BLANK = (
    r"\s\x00-\x1f\x7f-\x9f"  # control characters
    "\u200b\ufeff"  # zero-width space, byte order mark
    "\u200e\u200f\u061c\u202a-\u202e\u2066-\u2069"  # directions of writing
    "\u115f\u1160\u3164\uffa0\u2800"  # Hangul and Braille that show nothing
)
INK = re.compile(f"[^{_BLANK}]")
"""Anything that is no blank."""
_JOINER = frozenset("\ufe0e\ufe0f")  # this character as text, as an emoji
# Letters by Unicode, that are written as quotes and as an emoji: ʹ ʺ ʻ ʼ ʽ ℹ.
_SYMBOL = frozenset("\u02b9\u02ba\u02bb\u02bc\u02bd\u2139")
_KEYCAP = re.compile("[0-9#*]\ufe0f?\u20e3")  # a digit in a box is an emoji
# A joiner between letters is part of a word, and one after a symbol or a mark of what it follows. What is left over,
# beside a name, is nothing that anybody sees.
_STRAY = re.compile("(?<=[ai])j+(?![aijm])|(?:(?<= )|^)j+")
_WORD = re.compile("i[mj]*|s[smj]*|[amj]+")


def kinds(text: str) -> str:
    """The kind of each code point of a text, as the module says."""
    found = list(map(_kind, text))
    for keycap in _KEYCAP.finditer(text):
        found[keycap.start() : keycap.end()] = "s" * len(keycap[0])
    return _STRAY.sub(lambda stray: " " * len(stray[0]), "".join(found))


def readable(text: str, of_text: str) -> str:
    """The text with a blank for each code point that is one by its kind; tokenizers drop some of them, and so join
    words. The same length."""
    if " " not in of_text:
        return text
    return "".join(" " if kind == " " else character for character, kind in zip(text, of_text, strict=True))


def word_edges(of_text: str) -> bytearray:
    """Of a text's kinds: 1 where a word begins or ends, at each of the places between code points and at both ends."""
    edges = bytearray(len(of_text) + 1)
    for word in _WORD.finditer(of_text):
        edges[word.start()] = edges[word.end()] = 1
    return edges


def split_at_borders(tokenizer: Any) -> None:
    """Let a fast tokenizer make no piece that spans the border of a word, such as "(L" of SentencePiece.

    What it does already stays as it is; a tokenizer of another kind that joins them all the same is left so.
    """
    backend = tokenizer.backend_tokenizer
    own: PreTokenizer | None = backend.pre_tokenizer
    if own is None:
        backend.pre_tokenizer = Split(_RUN, "isolated")
    elif not _parts(own):
        # Behind its own: there a word has the ▁ that it shall have, and an inner part none. Byte-level tokenizers
        # write letters as other ones: for them the text is split before.
        for tried in (InTurn([own, Split(_RUN, "isolated")]), InTurn([Split(_RUN, "isolated"), own])):
            if _parts(tried):
                backend.pre_tokenizer = tried
                return


def _parts(pre_tokenizer: PreTokenizer) -> bool:
    """Whether it splits the probe at each of its borders."""
    borders = {border for _, span in pre_tokenizer.pre_tokenize_str(_PROBE) for border in span}
    return borders >= set(range(len(_PROBE) + 1))


def closed_edges(
    of_text: str, edges: bytearray, pieces: Sequence[tuple[int, int]], words: Sequence[int | None]
) -> set[int]:
    """Where words of the text meet and the tokenizer made one piece or one word of them.

    Its normaliser comes before all splitting, and may drop what lies between words or make letters of a symbol
    (NFKC writes ™ as TM).

    Args:
        of_text: the kinds.
        edges: of its words.
        pieces: offsets, in order.
        words: which of the tokenizer's own words each piece belongs to.
    """
    closed: set[int] = set()
    for index, (start, end) in enumerate(pieces):
        closed.update(_edges_between(edges, start + 1, end))
        if index + 1 < len(pieces) and words[index] == words[index + 1] and end <= pieces[index + 1][0]:
            closed.update(_edges_between(edges, end, pieces[index + 1][0] + 1))
    return {edge for edge in closed if " " not in of_text[edge - 1 : edge + 1]}


def _edges_between(edges: bytearray, start: int, stop: int) -> list[int]:
    found = []
    while (start := edges.find(1, start, stop)) >= 0:
        found.append(start)
        start += 1
    return found


def trimmed(of_text: str, start: int, end: int, limit: int) -> tuple[int, int]:
    """The offsets of a piece without the blanks around it; equal ones where it is nothing but blanks.

    With the combining marks that follow before `limit`, which some normalisers drop from the piece they belong to.
    """
    while end < limit and of_text[end] == "m":
        end += 1
    while start < end and of_text[start] == " ":
        start += 1
    while start < end and of_text[end - 1] == " ":
        end -= 1
    return start, end


def word_borders(
    of_text: str, edges: bytearray, pieces: Sequence[tuple[int, int]], words: Sequence[int | None]
) -> list[bool]:
    """For each of N pieces whether a word begins with it, and at last whether one ends with the last: N + 1 values.

    Args:
        of_text: the kinds of the text.
        edges: of its words.
        pieces: offsets of the N pieces, in order, none of them blank.
        words: which of the tokenizer's own words each piece belongs to.
    """
    if not pieces:
        return []
    inner = []
    for (_, end), (start, _), before, after in zip(pieces, pieces[1:], words, words[1:], strict=False):
        # Pieces of one character, as of a byte-level tokenizer, are not parted.
        is_edge = edges.find(1, end, start + 1) >= 0 if end <= start else False
        own = before != after and end <= start and of_text[start] not in "mj" and of_text[end - 1] not in "mj"
        inner.append(is_edge or own)
    return [True, *inner, True]


@lru_cache(2**16)
def _kind(character: str) -> str:
    if not INK.match(character):
        return " "
    category = unicodedata.category(character)
    if character in _JOINER or category == "Cf":
        return "j"
    if character in _SYMBOL:
        return "s"
    match category:
        case "Mn" | "Mc" | "Me":
            return "m"
        case "Cn" if 0x20000 <= ord(character) < 0x3FFFE:
            return "i"  # Chinese characters younger than Python's table
        case "No" | "Co" | "Cn" | "Cs":
            return "s"
    if category[0] in "PS":
        return "s"
    return "i" if unicodedata.name(character, "").startswith("CJK ") else "a"
