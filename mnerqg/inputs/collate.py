"""From posts to a batch of tensors: queries laid before sentences, padded, and the targets encoded.

Shapes: P posts, K queries a post, R sequences, L pieces, I pictures, S canvas side.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray

from mnerqg.boxes import Anchors
from mnerqg.inputs.batch import Batch, Texts
from mnerqg.inputs.examples import Example
from mnerqg.inputs.pairs import Frame
from mnerqg.inputs.sentences import NOTHING_SHOWN, IntArray, Sentences, Shown, starts_of
from mnerqg.inputs.targets import TargetEncoder
from mnerqg.inputs.text import TextEncoder

# The encoder is called once more for shorter sequences where this saves more than so many of all its pieces [chosen].
_WORTH_A_CALL = 1 / 32
# Of an even batch there are so many posts at the least. Its pictures are as many as its posts where so large a share of
# the true ones have some, and else multiples of a quarter of the posts [chosen].
_LEAST_EVEN_POSTS, _MOST_HAVE_PICTURES = 8, 0.75
_LONGER = 2  # pieces that a query has more than queries have on average if it is a long one [chosen]
_NO_SENTENCE = -1


@dataclass(frozen=True)
class _Sequences:
    """The distinct sequences that the encoder is to read, and where they stand.

    frames: what stands around the sentences; frame: [R] which of them it is.
    sentence: [R] which sentence stands in it, or `_NO_SENTENCE`.
    places: [P, K] which sequence stands there.
    queries: [P, K] in which one the grounding reads the query.
    asked: [P] how many of the K queries are the post's.
    """

    frames: Sequence[Frame]
    frame: IntArray
    sentence: IntArray
    places: IntArray
    queries: IntArray
    asked: IntArray


class Collator:
    """Builds batches.

    Args:
        text_encoder: of the model.
        anchors: of the model's canvas.
        ignore_iou: see `boxes.assign`.
        inputs: what of a post is seen; see `ModelConfig.inputs`.
        asks: whether queries are asked; the baselines label the words of the bare sentence.
        query_alone: whether the grounding reads queries without a sentence; see `ModelConfig.query_alone`.
        box_targets: see `LossConfig.box_targets`.
        pinned: whether pictures are laid into memory from which a GPU fetches them while other work goes on.
        step: lengths are padded to multiples of it; 8, so that matrices suit a GPU's kernels and few lengths occur.
        groups: whether sequences of about one length are a group of their own, which saves padding; a GPU that waits
            for the host to launch its kernels is faster without.
        even: whether batches have few shapes, for a GPU that replays what it did for another of the same shape
            (`model.replays`): the sequences of long queries are a group, and the others another one; behind the other
            posts there are some without text, up to a power of two; and the last picture is there several times. Not
            for training, where batch normalisation would count it as often.
    """

    def __init__(
        self,
        *,
        text_encoder: TextEncoder,
        anchors: Anchors,
        ignore_iou: float,
        inputs: str = "text_picture",
        asks: bool = True,
        query_alone: bool = False,
        box_targets: str = "largest",
        pinned: bool = False,
        step: int = 8,
        groups: bool = True,
        even: bool = False,
    ) -> None:
        self._text = text_encoder
        self._side = anchors.side
        self._sees_text = inputs != "picture"
        self._sees_picture = inputs != "text"
        self._asks = asks
        self._query_alone = query_alone
        self._pinned = pinned
        self._step = step
        self._groups = groups
        self._even = even
        self._targets = TargetEncoder(
            anchors=anchors, ignore_iou=ignore_iou, inputs=inputs, asks=asks, box_targets=box_targets
        )

    def __call__(self, examples: Sequence[Example], *, with_targets: bool) -> Batch:
        """Collate P examples; of sequences of about one length each is padded to the longest, in steps."""
        sentences = Sentences.of([example.text for example in examples])
        has_phrases = self._asks and any(example.phrases for example in examples)
        shown = Shown.of([example.pixels for example in examples])
        if not with_targets and not has_phrases:
            return self.of_sentences(sentences, shown)
        sequences = self._with_phrases(examples) if has_phrases else self._own(len(examples))
        batch = self._lay(sequences, sentences, shown)
        if not with_targets:
            return batch
        return replace(batch, targets=self._targets(examples, batch, sequences.asked))

    def of_sentences(self, sentences: Sentences, shown: Shown) -> Batch:
        """As a call, for posts that are asked the model's own queries."""
        if self._even:
            most = len(shown.canvases) > _MOST_HAVE_PICTURES * len(sentences)
            sentences = _with_empty(sentences)
            shown = _filled_up(shown, len(sentences) if most else len(sentences) // 4)
        return self._lay(self._own(len(sentences)), sentences, shown)

    @cached_property
    def _frames(self) -> list[Frame]:
        queries = self._text.query_ids if self._asks else ([],)
        return [self._text.frame(query, sentence=self._sees_text) for query in queries]

    @cached_property
    def _frames_alone(self) -> list[Frame]:
        return [self._text.frame(query, sentence=False) for query in self._text.query_ids]

    def _own(self, posts: int) -> _Sequences:
        """Queries without a sentence behind them are the same for all posts."""
        queries = len(self._frames)
        each, none = np.arange(queries), np.full(queries, _NO_SENTENCE)
        alone, asked = np.broadcast_to(each, (posts, queries)), np.full(posts, queries)
        if not self._sees_text:
            return _Sequences(self._frames, each, none, alone, alone, asked)
        frame, sentence = np.tile(each, posts), np.repeat(np.arange(posts), queries)
        places = np.arange(posts * queries).reshape(posts, queries)
        if not self._query_alone:
            return _Sequences(self._frames, frame, sentence, places, places, asked)
        return _Sequences(
            [*self._frames, *self._frames_alone],
            np.append(frame, queries + each),
            np.append(sentence, none),
            places,
            posts * queries + alone,
            asked,
        )

    def _with_phrases(self, examples: Sequence[Example]) -> _Sequences:
        """Some posts have queries of their own, behind which no sentence stands.

        A post with fewer queries than others asks its first one again, unheard. The batch normalisation of the
        grounding counts it: with phrases the statistics depend a little on which posts come together.
        """
        frames = list(self._frames)
        known: dict[tuple[int, ...], int] = {}
        rows: list[tuple[int, int]] = []
        asked = np.asarray([len(example.phrases or self._frames) for example in examples])
        places, queries = np.zeros((2, len(examples), asked.max()), np.int64)

        def alone(query: list[int]) -> int:
            if tuple(query) not in known:
                known[tuple(query)] = len(rows)
                rows.append((len(frames), _NO_SENTENCE))
                frames.append(self._text.frame(query, sentence=False))
            return known[tuple(query)]

        for p, example in enumerate(examples):
            reads = self._sees_text and not example.phrases
            for k, query in enumerate(example.phrases or self._text.query_ids):
                if reads:
                    places[p, k] = len(rows)
                    rows.append((k, p))
                else:
                    places[p, k] = alone(query)
                queries[p, k] = alone(query) if self._query_alone else places[p, k]
            for laid in (places, queries):
                laid[p, asked[p] :] = laid[p, 0]
        frame, sentence = np.asarray(rows).T
        return _Sequences(frames, frame, sentence, places, queries, asked)

    def _lay(self, sequences: _Sequences, sentences: Sentences, shown: Shown) -> Batch:
        around = np.asarray([len(frame.before) + len(frame.behind) for frame in sequences.frames])
        of_sentences = np.append(sentences.lengths, 0)  # the last one is that of no sentence
        lengths = around[sequences.frame] + of_sentences[sequences.sentence]
        texts, order = self._texts(sequences, sentences, lengths, around)
        # Of a query without a piece it is the first piece of all: a mean over nothing is no number.
        queries = np.asarray(
            [
                (one.query.start, one.query.stop) if one.query.stop > one.query.start else (0, 1)
                for one in sequences.frames
            ]
        )
        of_query = queries[sequences.frame[sequences.queries]]  # [P, K, 2]
        first, last = of_query[..., :1], of_query[..., 1:]
        offsets = np.asarray([one.place for one in sequences.frames])[sequences.frame[sequences.places]]
        place = np.arange(int(self._padded(lengths.max())))  # [L]
        in_query = place[: last.max()]  # [M]
        begins, ends = _word_borders(sequences, sentences, offsets, len(place))
        shown = shown if self._sees_picture else NOTHING_SHOWN
        return Batch(
            texts=texts,
            sequence=torch.from_numpy(order[sequences.places]),
            attention_mask=torch.from_numpy(place < lengths[sequences.places][..., None]),
            query_sequence=torch.from_numpy(order[sequences.queries]),
            query_mask=torch.from_numpy((first <= in_query) & (in_query < last)),
            begins_word=torch.from_numpy(begins),
            ends_word=torch.from_numpy(ends),
            sentence_offset=torch.from_numpy(offsets),
            pixels=self._pixels(shown),
            shown=torch.from_numpy(shown.posts),
            picture=torch.from_numpy(shown.rows),
        )

    def _texts(
        self, sequences: _Sequences, sentences: Sentences, lengths: IntArray, around: IntArray
    ) -> tuple[tuple[Texts, ...], IntArray]:
        """The sequences in groups, in each by length, and the place [R] of each among all."""
        # Which queries are long is the same in each batch, and so then are the groups.
        of_long_query = around > around.mean() + _LONGER if self._even else np.zeros(len(around), bool)
        by_length = np.lexsort((lengths, of_long_query[sequences.frame]))
        of_shorter = len(by_length) - int(of_long_query[sequences.frame].sum())
        lengths = lengths[by_length]
        ids, types = _end_to_end(sequences, sentences, by_length, lengths)
        starts = np.append(starts_of(lengths), lengths.sum())
        inner = _cuts(self._padded(lengths)) if self._groups else [of_shorter]
        cuts = sorted({0, *inner, len(lengths)})
        texts = []
        for start, stop in pairwise(cuts):
            group = lengths[start:stop]
            mask = np.arange(int(self._padded(group.max()))) < group[:, None]
            filled = slice(starts[start], starts[stop])
            padded_ids, padded_types = np.full(mask.shape, self._text.pad_id), np.zeros(mask.shape, np.int64)
            padded_ids[mask], padded_types[mask] = ids[filled], types[filled]
            texts.append(Texts(*map(torch.from_numpy, (padded_ids, padded_types, mask))))
        order = np.empty_like(by_length)
        order[by_length] = np.arange(len(by_length))
        return tuple(texts), order

    def _padded(self, lengths: IntArray) -> IntArray:
        return -(-lengths // self._step) * self._step

    def _pixels(self, shown: Shown) -> torch.Tensor:
        """[I, 3, S, S] pictures, each once.

        Nothing may stand in for a picture where there is none: batch normalisation would count it.
        """
        pixels = torch.empty(
            (len(shown.canvases), self._side, self._side, 3),
            dtype=torch.uint8,
            pin_memory=self._pinned,
        )
        for canvas, place in zip(shown.canvases, pixels.numpy(), strict=True):
            place[:] = canvas
        # In memory it stays [I, S, S, 3], the order in which the convolutions want it.
        return pixels.permute(0, 3, 1, 2)


def _with_empty(sentences: Sentences) -> Sentences:
    """Empty sentences behind the others, up to a power of two."""
    posts = len(sentences)
    filled = max(_LEAST_EVEN_POSTS, 2 ** (posts - 1).bit_length())
    behind = (0, filled - posts)
    return replace(
        sentences, starts=np.pad(sentences.starts, behind), lengths=np.pad(sentences.lengths, behind)
    )


def _filled_up(shown: Shown, step: int) -> Shown:
    """The last picture, and that its post has it, so often that there is a multiple of `step` of both."""
    if not shown.canvases:
        return shown
    canvases, posts = len(shown.canvases), len(shown.posts)
    filled = -(-canvases // step) * step
    # Where posts share pictures there stay fewer of these, by which the network knows that they do.
    told = filled if posts == canvases else -(-max(posts, filled + 1) // step) * step
    return Shown(
        [*shown.canvases, *[shown.canvases[-1]] * (filled - canvases)],
        np.pad(shown.posts, (0, told - posts), "edge"),
        np.pad(shown.rows, (0, told - posts), "edge"),
    )


def _end_to_end(
    sequences: _Sequences, sentences: Sentences, order: IntArray, lengths: IntArray
) -> tuple[IntArray, IntArray]:
    """The pieces and type ids of all sequences, one behind the other in an order in which they have these lengths."""
    ids, types = np.empty((2, lengths.sum()), np.int64)
    starts = starts_of(lengths)
    frame_of, sentence_of = sequences.frame[order], sequences.sentence[order]
    for number in np.unique(frame_of):
        frame = sequences.frames[number]
        rows = np.flatnonzero(frame_of == number)
        before = starts[rows, None] + np.arange(len(frame.before))
        ids[before], types[before] = frame.before, frame.before_types
        behind = (starts + lengths)[rows, None] + np.arange(-len(frame.behind), 0)
        ids[behind], types[behind] = frame.behind, frame.behind_types
        rows = rows[sentence_of[rows] != _NO_SENTENCE]
        row, within, pieces = sentences.pieces(sentence_of[rows])
        inside = starts[rows][row] + len(frame.before) + within
        ids[inside], types[inside] = sentences.ids[pieces], frame.sentence_type
    return ids, types


def _word_borders(
    sequences: _Sequences, sentences: Sentences, offsets: IntArray, pieces: int
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Where behind the queries words begin and end, two [P, K, L]."""
    begins, ends = np.zeros((2, *offsets.shape, pieces), bool)
    for k in range(offsets.shape[1]):
        sentence = sequences.sentence[sequences.places[:, k]]
        posts = np.flatnonzero((sentence != _NO_SENTENCE) & (k < sequences.asked))
        row, within, flat = sentences.pieces(sentence[posts])
        post = posts[row]
        place = offsets[post, k] + within
        begins[post, k, place], ends[post, k, place] = sentences.begins_word[flat], sentences.ends_word[flat]
    return begins, ends


def _cuts(lengths: Sequence[int] | IntArray) -> list[int]:
    """Where to cut sequences of rising lengths so that padding and calls of the encoder cost least together.

    Found by the shortest way over the places where the length rises: a call costs as much as `_WORTH_A_CALL` of all
    pieces would when nothing is cut more finely.
    """
    lengths = np.asarray(lengths)
    rises = [0, *(np.flatnonzero(np.diff(lengths)) + 1).tolist(), len(lengths)]
    call = _WORTH_A_CALL * float(lengths.sum())
    best: list[tuple[float, list[int]]] = [(0.0, [])]  # to each place, the cost and the cuts on the way
    for to in range(1, len(rises)):
        last = int(lengths[rises[to] - 1])
        best.append(
            min(
                (cost + call + (rises[to] - rises[start]) * last, [*cuts, rises[start]])
                for start, (cost, cuts) in enumerate(best)
            )
        )
    return best[-1][1][1:]
