"""The sentences and pictures of many posts: no Python object a post stands between the tokenizer and the model.

Nothing here imports torch: tokenizing is the work of tasks that do without.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Self

import numpy as np
from numpy.typing import NDArray

from mnerqg.inputs.images import Pixels
from mnerqg.inputs.text import EncodedText

IntArray = NDArray[np.int64]


@dataclass(frozen=True)
class Sentences:
    """N sentences of T pieces together.

    ids: [T] the pieces, one sentence after the other.
    begins_word, ends_word: [T] whether an entity may begin or end with a piece.
    starts: [N] the place of each sentence's first piece; lengths: [N] how many pieces it has.
    """

    ids: IntArray
    begins_word: NDArray[np.bool_]
    ends_word: NDArray[np.bool_]
    starts: IntArray
    lengths: IntArray

    def __len__(self) -> int:
        return len(self.lengths)

    @classmethod
    def of(cls, texts: Sequence[EncodedText]) -> Self:
        """The sentences of encoded texts."""
        lengths = np.asarray([len(text.token_ids) for text in texts], np.int64)

        def flat(pieces: chain[int] | chain[bool], kind: type) -> NDArray[np.generic]:
            return np.fromiter(pieces, kind, int(lengths.sum()))

        return cls(
            ids=flat(chain.from_iterable(text.token_ids for text in texts), np.int64),  # type: ignore[arg-type]
            begins_word=flat(chain.from_iterable(text.begins_word for text in texts), np.bool_),  # type: ignore[arg-type]
            ends_word=flat(chain.from_iterable(text.ends_word for text in texts), np.bool_),  # type: ignore[arg-type]
            starts=starts_of(lengths),
            lengths=lengths,
        )

    def take(self, which: IntArray) -> Self:
        """Some of the sentences, in that order and as often as they are named; the pieces stay where they are."""
        return type(self)(self.ids, self.begins_word, self.ends_word, self.starts[which], self.lengths[which])

    def pieces(self, which: IntArray) -> tuple[IntArray, IntArray, IntArray]:
        """All pieces of some of the sentences.

        Returns:
            For each piece, which of `which` it belongs to, its place in the sentence, and its place in the arrays.
        """
        lengths = self.lengths[which]
        of = np.repeat(np.arange(len(which)), lengths)
        within = np.arange(len(of)) - np.repeat(starts_of(lengths), lengths)
        return of, within, self.starts[which][of] + within


@dataclass(frozen=True)
class Shown:
    """The pictures of P posts. Q of the posts have one.

    canvases: every picture once, each [S, S, 3], in the order in which the posts show them first: where no two posts
        have the same, that is the order of the posts, and the network counts on it.
    posts: [Q] the posts that have a picture, in rising order; rows: [Q] which of `canvases` is theirs.
    """

    canvases: Sequence[Pixels]
    posts: IntArray
    rows: IntArray

    @classmethod
    def of(cls, canvases: Sequence[Pixels | None]) -> Self:
        """Of posts some of which may have the same picture: the windows of a long text share one canvas."""
        present = {id(canvas): canvas for canvas in canvases if canvas is not None}
        rows = {canvas: row for row, canvas in enumerate(present)}
        shown = [(post, rows[id(canvas)]) for post, canvas in enumerate(canvases) if canvas is not None]
        posts, of_posts = np.asarray(shown, np.int64).reshape(-1, 2).T
        return cls(list(present.values()), posts, of_posts)


NOTHING_SHOWN = Shown((), np.zeros(0, np.int64), np.zeros(0, np.int64))


def starts_of(lengths: IntArray) -> IntArray:
    """[N] where each of some runs begins that lie end to end."""
    starts = np.zeros(len(lengths), np.int64)
    np.cumsum(lengths[:-1], out=starts[1:])
    return starts
