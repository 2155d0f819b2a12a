"""How a tokenizer lays a query and a sentence beside each other: its own special pieces and type ids.

BERT: `[CLS] query [SEP] sentence [SEP]` of the types 0 and 1; RoBERTa: `<s> query </s></s> sentence </s>` of one type;
XLNet: `query <sep> sentence <sep> <cls>`.
"""

from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray
from tokenizers import Encoding, Tokenizer

from mnerqg.errors import ModelError

Pieces = NDArray[np.int64]
OTHER_FAMILY = "name the encoder of another family, such as BERT, RoBERTa or DeBERTa"


@dataclass(frozen=True, slots=True)
class Frame:
    """What the encoder reads around a sentence for one query: all pieces before it and behind it, and their type ids.

    before, before_types, behind, behind_types: pieces and type ids. Where no sentence is read, all stands in `before`.
    query: where in `before` the query's own pieces lie; nothing, where none is asked.
    place: where the sentence begins, or would begin.
    sentence_type: the type id of its pieces.
    """

    before: Pieces
    before_types: Pieces
    behind: Pieces
    behind_types: Pieces
    query: slice
    place: int
    sentence_type: int


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
    def of(cls, tokenizer: Tokenizer, name: str) -> Self:
        """Found by encoding a text, and two.

        Raises:
            ModelError: the tokenizer, which the error calls by its name, puts nothing between two texts.
        """
        (before, behind), (of_one,) = _parts(tokenizer.encode("a"), texts=1)
        (first, between, last), (of_first, of_second) = _parts(tokenizer.encode("a", "a"), texts=2)
        if not between.ids:
            raise ModelError(f"tokenizer {name} puts nothing between a query and a sentence; {OTHER_FAMILY}")
        return cls((before, behind), (first, between, last), (of_one, of_first, of_second))

    def room(self, max_length: int) -> int:
        """How many of `max_length` pieces a query and a sentence may have together."""
        return max_length - sum(len(special.ids) for special in self.pair)

    def room_alone(self, max_length: int) -> int:
        """How many of `max_length` pieces one text may have."""
        return max_length - sum(len(special.ids) for special in self.alone)

    def frame(self, query: list[int], *, sentence: bool) -> Frame:
        """What stands around a sentence that is asked `query`, an empty one for none; or, without, around the query."""
        alone, of_one = self.alone, self.types[0]
        if not sentence:
            start = len(alone[0].ids)
            asked = slice(start, start + len(query))
            ids = [*alone[0].ids, *query, *alone[1].ids]
            types = [*alone[0].types, *[of_one] * len(query), *alone[1].types]
            return Frame(*_arrays(ids, types, [], []), asked, start, of_one)
        if not query:
            before, behind = alone
            start = len(before.ids)
            pieces = _arrays(before.ids, before.types, behind.ids, behind.types)
            return Frame(*pieces, slice(start, start), start, of_one)
        before, between, behind = self.pair
        asked = slice(len(before.ids), len(before.ids) + len(query))
        ids = [*before.ids, *query, *between.ids]
        types = [*before.types, *[self.types[1]] * len(query), *between.types]
        return Frame(*_arrays(ids, types, behind.ids, behind.types), asked, len(ids), self.types[2])


def _arrays(*pieces: list[int]) -> tuple[Pieces, Pieces, Pieces, Pieces]:
    before, before_types, behind, behind_types = (np.asarray(some, np.int64) for some in pieces)
    return before, before_types, behind, behind_types


@dataclass(frozen=True, slots=True)
class _Special:
    ids: list[int]
    types: list[int]


def _parts(encoding: Encoding, texts: int) -> tuple[list[_Special], list[int]]:
    """The special pieces before, between and behind the texts, and the type of each text's pieces."""
    specials = [_Special([], []) for _ in range(texts + 1)]
    types = [0] * texts
    seen = 0
    for piece, kind, text in zip(encoding.ids, encoding.type_ids, encoding.sequence_ids, strict=True):
        if text is None:
            specials[seen].ids.append(piece)
            specials[seen].types.append(kind)
        else:
            seen = text + 1
            types[text] = kind
    return specials, types
