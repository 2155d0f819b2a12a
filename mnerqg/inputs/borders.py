"""Where in a text words begin and end, whatever the tokenizer.

A word begins and ends at blanks, where letters or digits meet punctuation or symbols, beside each Chinese character,
and where the tokenizer itself parts words: so "London" is a word of "(London)", "#London", "London's" and "London,"
[chosen]. Offsets are code points.
"""

import unicodedata
from collections.abc import Sequence
from functools import cache
from typing import Any

from tokenizers import Regex
from tokenizers.pre_tokenizers import PreTokenizer, Split
from tokenizers.pre_tokenizers import Sequence as InTurn

# A run of punctuation and symbols, each with the marks and joiners that belong to it. SentencePiece writes a blank as
# ▁, which is a symbol too; a blank stays with what follows it.
_RUN = Regex(r"[▁ ]?(?:[\p{P}\p{S}&&[^▁]][\p{M}\p{Cf}]*)+")
# Letters that meet punctuation, a mathematical symbol and an emoji.
_PROBE = "a(b+c👍d"


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


def without_blanks(text: str, start: int, end: int) -> tuple[int, int]:
    """The offsets of a piece without the blanks around it; equal ones where it is nothing but blanks."""
    while start < end and text[start].isspace():
        start += 1
    while start < end and text[end - 1].isspace():
        end -= 1
    return start, end


def with_marks(text: str, end: int, limit: int) -> int:
    """`end` moved over combining marks, which some normalisers drop from the piece they belong to."""
    while end < limit and unicodedata.category(text[end]).startswith("M"):
        end += 1
    return end


def word_borders(text: str, starts: Sequence[int], ends: Sequence[int], words: Sequence[int]) -> list[bool]:
    """For each of N pieces whether a word begins with it, and at last whether one ends with the last: N + 1 values.

    Args:
        text: the whole text.
        starts: of the N pieces, none of them blank.
        ends: of the N pieces, exclusive.
        words: which of the tokenizer's own words each piece belongs to.
    """
    if not starts:
        return []
    inner = [
        _is_border(text, end, start, own=before != after)
        for end, start, before, after in zip(ends, starts[1:], words, words[1:], strict=False)
    ]
    return [True, *inner, True]


def _is_border(text: str, end: int, start: int, *, own: bool) -> bool:
    """Whether a word ends at `end` and the next begins at `start`; `own` is what the tokenizer says.

    Pieces of one character, as of a byte-level tokenizer, are not parted.
    """
    if start < end:
        return False
    if any(text[index].isspace() for index in range(end, start)):
        return True
    after = _kind(text[start])
    if after == "joined":
        return False  # marks and joiners belong to what they follow
    last = end - 1
    while last > 0 and _kind(text[last]) == "joined":
        last -= 1
    before = _kind(text[last])
    if before != after or after == "ideograph":
        return True
    return own and last == end - 1


@cache
def _kind(character: str) -> str:
    category = unicodedata.category(character)
    if category[0] == "M" or category in ("Cc", "Cf"):
        return "joined"
    if category[0] in "PS":
        return "symbol"
    return "ideograph" if unicodedata.name(character, "").startswith("CJK ") else "letter"
