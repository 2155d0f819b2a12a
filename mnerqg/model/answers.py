"""What the host needs of a network's output: a few small arrays, worked out on the device and copied back at once.

Shapes: P posts, K queries a post, L pieces, N boxes a query.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Self

import numpy as np
import torch
import torchvision.ops
from numpy.typing import NDArray
from torch import Tensor

from mnerqg import boxes
from mnerqg.config import DecodeConfig
from mnerqg.inputs.batch import Batch
from mnerqg.inputs.sentences import Sentences
from mnerqg.model.found import Floats, Found, IntArray
from mnerqg.model.output import Output, SpanLogits
from mnerqg.model.words import WordLogits, label_runs


@dataclass(frozen=True)
class SpanAnswers:
    """Of a network that answers by spans. Places are pieces of the sentence, whatever stands before it.

    existence_scores: [P, K].
    start_scores, end_scores: [P, K, L], 0 where no word begins or ends.
    start_shares, end_shares: [P, K, L] whose sum is the logit of a pair (eq. 5); empty below a hidden layer.
    pairs, pair_logits: [M, 4] (post, query, start, end) and [M] of a hidden layer: the pairs that are above the lowest
        threshold, and -1 behind them; else empty.
    room: [] for so many pairs there has to be room; where M is less, some are missing. Empty as they are.
    """

    existence_scores: Floats
    start_scores: Floats
    end_scores: Floats
    start_shares: Floats
    end_shares: Floats
    pairs: Floats
    pair_logits: Floats
    room: Floats

    def above(self, span_threshold: float, match_threshold: float) -> tuple[IntArray, Floats]:
        """[M, 4] post, query, first and last piece, and [M] scores, of all that is above the thresholds."""
        if self.start_shares.size:
            pairs = _pairs(self.start_scores > span_threshold, self.end_scores > span_threshold)
            post, query, first, last = pairs.T
            logits = self.start_shares[post, query, first] + self.end_shares[post, query, last]
        else:
            pairs = self.pairs.astype(np.int64)
            post, query, first, last = pairs.T
            above = (self.start_scores[post, query, first] > span_threshold) & (
                self.end_scores[post, query, last] > span_threshold
            )
            above &= post >= 0
            pairs, logits = pairs[above], self.pair_logits[above]
            post, query, first, last = pairs.T
        match = 1 / (1 + np.exp(-logits))
        scores = self.start_scores[post, query, first] * self.end_scores[post, query, last] * match
        kept = match > match_threshold
        return pairs[kept], scores[kept]


@dataclass(frozen=True)
class Reduced:
    """What is left of a network's output, still on its device.

    values: [S] float32, the fields of `SpanAnswers` and `Answers` end to end: every copy to the host waits by itself.
    shapes: of the fields, by name and in that order.
    """

    values: Tensor
    shapes: dict[str, torch.Size]

    @classmethod
    @torch.no_grad()
    def of(
        cls, output: Output, batch: Batch, *, table: Tensor | None, most_boxes: int, lowest: float, room: int
    ) -> Self:
        """Reduce an output.

        Args:
            output: of the network for `batch`.
            batch: that was answered.
            table: `Anchors.table` on the output's device; None leaves the boxes out.
            most_boxes: N.
            lowest: the lowest threshold for starts and ends that will be asked for.
            room: for so many pairs of a hidden layer (`Answers.room`).
        """
        parts: dict[str, Tensor] = {}
        if output.spans is not None:
            names = (entry.name for entry in fields(SpanAnswers))
            parts |= zip(names, _spans(output.spans, batch, lowest, room), strict=True)
        if output.box_logits is not None and table is not None:
            parts |= zip(
                ("boxes_canvas", "box_scores"), _boxes(output.box_logits, table, most_boxes), strict=True
            )
        if output.words is not None:
            labels = _words(output.words, batch.begins_word[:, 0])
            parts |= zip(("word_labels", "word_scores"), labels, strict=True)
        return cls(
            torch.cat([part.float().flatten() for part in parts.values()]),
            {name: part.shape for name, part in parts.items()},
        )


@dataclass(frozen=True)
class Answers:
    """Of P posts.

    spans: of a network that answers by spans.
    boxes_canvas, box_scores: [P, K, N, 4] xyxy and [P, K, N], the most confident first, of one that grounds.
    word_labels, word_scores: [P, L] of a baseline: at each word's first piece its label and the label's score, else -1.
    """

    spans: SpanAnswers | None = None
    boxes_canvas: Floats | None = None
    box_scores: Floats | None = None
    word_labels: Floats | None = None
    word_scores: Floats | None = None

    @classmethod
    def of_values(cls, values: Tensor, reduced: Reduced) -> Self:
        """What `reduced` says, of whose values `values` is a copy on the host."""
        sizes = [shape.numel() for shape in reduced.shapes.values()]
        parts = np.split(values.numpy(), np.cumsum(sizes)[:-1])
        arrays = {
            name: part.reshape(shape)
            for part, (name, shape) in zip(parts, reduced.shapes.items(), strict=True)
        }
        spans = {entry.name: arrays.pop(entry.name) for entry in fields(SpanAnswers) if entry.name in arrays}
        return cls(spans=SpanAnswers(**spans) if spans else None, **arrays)

    @property
    def room(self) -> int | None:
        """For how many pairs there would have to be room; None where none is missing."""
        if self.spans is None or not self.spans.room.size or self.spans.room <= len(self.spans.pairs):
            return None
        return int(self.spans.room)

    def of_first(self, posts: int) -> Self:
        """Of so many posts alone: behind them an even batch has posts in which nothing is found."""
        spans = self.spans
        if spans is not None:
            of_pairs = ("pairs", "pair_logits", "room")
            parts = (entry.name for entry in fields(SpanAnswers) if entry.name not in of_pairs)
            spans = replace(spans, **{name: getattr(spans, name)[:posts] for name in parts})
        arrays = ("boxes_canvas", "box_scores", "word_labels", "word_scores")
        known = {name: getattr(self, name) for name in arrays if getattr(self, name) is not None}
        return replace(self, spans=spans, **{name: array[:posts] for name, array in known.items()})

    def found(
        self, configs: Sequence[DecodeConfig], sentences: Sentences, pictured: NDArray[np.bool_]
    ) -> list[Found]:
        """What is above the thresholds of each configuration; in all but those of spans they are alike.

        Args:
            configs: whose thresholds they are.
            sentences: of the posts.
            pictured: [P] which of them have a picture: no box is in any other.
        """
        found = self._boxes(configs[0], pictured)
        if self.spans is not None:
            found = replace(found, existence=self.spans.existence_scores)
        each = []
        for config in configs:
            if self.spans is not None:
                spans, scores = self.spans.above(config.span_threshold, config.match_threshold)
            elif self.word_labels is not None:
                spans, scores = self._labelled(sentences)
            else:
                spans, scores = found.spans, found.span_scores
            each.append(replace(found, spans=spans, span_scores=scores))
        return each

    def _boxes(self, config: DecodeConfig, pictured: NDArray[np.bool_]) -> Found:
        """The boxes alone."""
        found = Found.nothing(len(pictured))
        if self.boxes_canvas is None or self.box_scores is None:
            return found
        kept = _kept_boxes(self.boxes_canvas, self.box_scores, config) & pictured[:, None, None]
        post, query, _ = np.nonzero(kept)
        return replace(
            found,
            boxes=np.stack([post, query], 1),
            boxes_canvas=self.boxes_canvas[kept],
            box_scores=self.box_scores[kept],
        )

    def _labelled(self, sentences: Sentences) -> tuple[IntArray, Floats]:
        """The runs of word labels as spans. The score of one is its words' mean [chosen]."""
        assert self.word_labels is not None
        assert self.word_scores is not None
        spans: list[tuple[int, int, int, int]] = []
        scores: list[float] = []
        for post, (labels, of_pieces) in enumerate(zip(self.word_labels, self.word_scores, strict=True)):
            start, length = sentences.starts[post], sentences.lengths[post]
            first_pieces = np.flatnonzero(sentences.begins_word[start : start + length])
            # The last word may be cut, and then has no piece that ends it.
            last_pieces = np.append(first_pieces[1:] - 1, length - 1)
            begins = labels >= 0
            of_words = of_pieces[begins]
            for first, last, k in label_runs(labels[begins].astype(int).tolist()):
                spans.append((post, k, int(first_pieces[first]), int(last_pieces[last])))
                scores.append(float(of_words[first : last + 1].mean()))
        return np.asarray(spans, np.int64).reshape(-1, 4), np.asarray(scores, np.float32)


def _kept_boxes(boxes_canvas: Floats, scores: Floats, config: DecodeConfig) -> NDArray[np.bool_]:
    """[P, K, N] the best box of each query, and where it may have several regions all that are above the threshold and
    overlap no better one."""
    kept = np.zeros(scores.shape, bool)
    kept[..., 0] = True
    if config.regions == "one":
        return kept
    for post, query in np.ndindex(scores.shape[:2]):
        above = np.flatnonzero(scores[post, query] >= config.region_threshold)
        chosen = torchvision.ops.nms(
            torch.from_numpy(boxes_canvas[post, query, above]),
            torch.from_numpy(scores[post, query, above]),
            config.nms_iou,
        )
        kept[post, query, above[chosen.numpy()]] = True
    return kept


def _spans(spans: SpanLogits, batch: Batch, lowest: float, room: int) -> list[Tensor]:
    """The fields of `SpanAnswers`."""
    pieces = batch.begins_word.shape[-1]
    place = batch.sentence_offset[..., None] + torch.arange(pieces, device=batch.begins_word.device)
    inside, place = place < pieces, place.clamp(max=pieces - 1)  # [P, K, L]

    def score(logits: Tensor, allowed: Tensor) -> Tensor:
        scores = _yes(logits) * allowed
        return scores.gather(-1, place) * inside

    starts, ends = score(spans.start_logits, batch.begins_word), score(spans.end_logits, batch.ends_word)
    nothing = starts.new_zeros(0)
    shares, pairs, logits, needed = [nothing, nothing], starts.new_zeros(0, 4), nothing, nothing
    if spans.match.hidden is None:
        both = spans.match.start_share, spans.match.end_share
        shares = [share.squeeze(-1).float().gather(-1, place) for share in both]
    else:
        pairs, needed = _pairs_on_device(starts > lowest, ends > lowest, room)
        post, query, start, end = pairs.clamp(min=0).unbind(1)
        offset = batch.sentence_offset[post, query]
        logits = spans.match.at(torch.stack([post, query, start + offset, end + offset], 1))
    return [_yes(spans.existence_logits), starts, ends, *shares, pairs, logits, needed]


def _pairs_on_device(starts: Tensor, ends: Tensor, room: int) -> tuple[Tensor, Tensor]:
    """`_pairs` of which the host need not know how many there are: filled up with -1 to [room, 4], and for how many
    there has to be room, at the least."""
    begin = starts.nonzero_static(size=room, fill_value=-1)  # [room, 3]
    post, query, start = begin.unbind(1)
    places = torch.arange(ends.shape[-1], device=ends.device)
    # Where nothing is left, -1 reads some query's ends, which do not count.
    behind = ends[post, query] & (places >= start[:, None]) & (post >= 0)[:, None]  # [room, L]
    row, end = behind.nonzero_static(size=room, fill_value=-1).unbind(1)
    found = torch.cat([begin[row], end[:, None]], 1)
    needed = torch.maximum(starts.sum(), behind.sum())
    return found.where((row >= 0)[:, None], -1), needed


def _yes(logits: Tensor) -> Tensor:
    """The second of two classes' softmax, [..., 2] -> [...], which a sigmoid gives in a fraction of the time."""
    no, yes = logits.float().unbind(-1)
    return (yes - no).sigmoid()


def _pairs(starts: NDArray[np.bool_], ends: NDArray[np.bool_]) -> NDArray[np.int64]:
    """All (post, query, start, end) [M, 4] with start ≤ end from two masks [P, K, L]."""
    begin = np.argwhere(starts)
    row, end = np.nonzero(ends[begin[:, 0], begin[:, 1]])
    pairs = np.concatenate([begin[row], end[:, None]], 1)
    return pairs[pairs[:, 2] <= pairs[:, 3]]


def _boxes(box_logits: Tensor, table: Tensor, most: int) -> list[Tensor]:
    """The most confident boxes [P, K, N, 4] and their scores."""
    confidence = box_logits[..., 4]  # [P, K, C]
    # In bf16 several are often equally confident: either way the first of them comes first.
    if most == 1:
        best = confidence.argmax(-1, keepdim=True)
    else:
        best = confidence.sort(dim=-1, descending=True, stable=True).indices[..., :most]
    chosen = box_logits.gather(2, best[..., None].expand(*best.shape, 5))
    return [boxes.decode(chosen, table[best]), chosen[..., 4].sigmoid()]


def _words(words: WordLogits, begins_word: Tensor) -> list[Tensor]:
    """[P, L] labels and their scores."""
    if words.crf is None:
        labels = words.labels.argmax(-1).where(begins_word, -1)
    else:
        labels = torch.full_like(begins_word, -1, dtype=torch.long)
        labels[begins_word] = torch.tensor(
            [label for path in words.best(begins_word) for label in path],
            device=labels.device,
            dtype=labels.dtype,
        )
    scores = words.labels.softmax(-1).gather(-1, labels.clamp(min=0)[..., None]).squeeze(-1)
    return [labels, scores.where(begins_word, -1)]
