"""How a tokenizer lays a query and a sentence beside each other: its own special pieces and type ids.

BERT: `[CLS] query [SEP] sentence [SEP]` of the types 0 and 1; RoBERTa: `<s> query </s></s> sentence </s>` of one type;
XLNet: `query <sep> sentence <sep> <cls>`.
"""

from dataclasses import dataclass
from typing import Any, Self

from mnerqg.errors import ModelError


@dataclass(frozen=True, slots=True)
class Row:
    """What the encoder reads: pieces with their type ids, and where in them query and sentence lie."""

    ids: list[int]
    types: list[int]
    query: slice
    sentence: slice


@dataclass(frozen=True, slots=True)
class PairTemplate:
    """A tokenizer's special pieces around one text, and around and between two.

    Args:
        alone: (before, behind) of one text.
        pair: (before, between, behind) of two.
        types: of one text, and of the first and the second of two; special pieces have types of their own.
    """

    alone: tuple["_Special", "_Special"]
    pair: tuple["_Special", "_Special", "_Special"]
    types: tuple[int, int, int]

    @classmethod
    def of(cls, tokenizer: Any) -> Self:
        """Found by encoding a text, and two.

        Raises:
            ModelError: the tokenizer has no offsets, or puts nothing between two texts.
        """
        remedy = "name the encoder of another family, such as BERT, RoBERTa or DeBERTa"
        if not tokenizer.is_fast:
            raise ModelError(
                f"tokenizer {tokenizer.name_or_path} has no offsets, for it is no fast one; {remedy}"
            )
        (before, behind), (of_one,) = _parts(tokenizer("a", return_token_type_ids=True), texts=1)
        (first, between, last), (of_first, of_second) = _parts(
            tokenizer("a", "a", return_token_type_ids=True), texts=2
        )
        if not between.ids:
            raise ModelError(
                f"tokenizer {tokenizer.name_or_path} puts nothing between a query and a sentence; {remedy}"
            )
        return cls((before, behind), (first, between, last), (of_one, of_first, of_second))

    def room(self, max_length: int) -> int:
        """How many of `max_length` pieces a query and a sentence may have together."""
        return max_length - sum(len(special.ids) for special in self.pair)

    def room_alone(self, max_length: int) -> int:
        """How many of `max_length` pieces one text may have."""
        return max_length - sum(len(special.ids) for special in self.alone)

    def lay(self, query: list[int], sentence: list[int] | None) -> Row:
        """Query and sentence; one of them alone where there is no query, or `sentence` is None."""
        if not query or sentence is None:
            before, behind = self.alone
            text = sentence if sentence is not None else query
            inner = slice(len(before.ids), len(before.ids) + len(text))
            nothing = slice(inner.start, inner.start)
            return Row(
                [*before.ids, *text, *behind.ids],
                [*before.types, *[self.types[0]] * len(text), *behind.types],
                inner if sentence is None else nothing,
                inner if sentence is not None else nothing,
            )
        before, between, behind = self.pair
        asked = slice(len(before.ids), len(before.ids) + len(query))
        start = asked.stop + len(between.ids)
        return Row(
            [*before.ids, *query, *between.ids, *sentence, *behind.ids],
            [
                *before.types,
                *[self.types[1]] * len(query),
                *between.types,
                *[self.types[2]] * len(sentence),
                *behind.types,
            ],
            asked,
            slice(start, start + len(sentence)),
        )


@dataclass(frozen=True, slots=True)
class _Special:
    ids: list[int]
    types: list[int]


def _parts(encoding: Any, texts: int) -> tuple[list[_Special], list[int]]:
    """The special pieces before, between and behind the texts, and the type of each text's pieces."""
    specials = [_Special([], []) for _ in range(texts + 1)]
    types = [0] * texts
    seen = 0
    for piece, kind, text in zip(
        encoding["input_ids"], encoding["token_type_ids"], encoding.sequence_ids(), strict=True
    ):
        if text is None:
            specials[seen].ids.append(piece)
            specials[seen].types.append(kind)
        else:
            seen = text + 1
            types[text] = kind
    return specials, types
