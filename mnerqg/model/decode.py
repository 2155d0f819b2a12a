"""From logits to answers: entities with character offsets and boxes in pixels (DESIGN §4 "Decoding")."""

from collections.abc import Iterable, Sequence
from dataclasses import replace

import torch
import torchvision.ops
from torch import Tensor

from mnerqg import boxes
from mnerqg.config import DecodeConfig
from mnerqg.inputs.batch import Batch
from mnerqg.inputs.examples import Example
from mnerqg.inputs.images import Letterbox
from mnerqg.inputs.posts import attach_regions
from mnerqg.inputs.text import EncodedText
from mnerqg.model.output import Output, SpanLogits
from mnerqg.model.words import WordLogits, label_runs
from mnerqg.schema import Entity, Region, TaggedPost


class Decoder:
    """Turns outputs into answers.

    Args:
        config: thresholds, the overlap rule, one region a query or several.
        types: the K entity types in the order of the queries.
        anchors: of the model's canvas.
        answers_boxes, answers_existence: false leaves out what these heads say, where they are untrained (see
            `LossConfig`).
    """

    def __init__(
        self,
        *,
        config: DecodeConfig,
        types: Sequence[str],
        anchors: boxes.Anchors,
        answers_boxes: bool = True,
        answers_existence: bool = True,
    ) -> None:
        self.config = config
        self.types = tuple(types)
        self._table = torch.from_numpy(anchors.table())
        self._answers_boxes = answers_boxes
        self._answers_existence = answers_existence

    def __call__(self, output: Output, batch: Batch, examples: Sequence[Example]) -> list[TaggedPost]:
        """Answers of P posts, in order.

        Args:
            output: of the network for `batch`.
            batch: the batch of `examples`.
            examples: P examples; those with a picture have their letterbox.
        """
        return self.at_each([self.config], output, batch, examples)[0]

    @torch.no_grad()
    def at_each(
        self, configs: Sequence[DecodeConfig], output: Output, batch: Batch, examples: Sequence[Example]
    ) -> list[list[TaggedPost]]:
        """As a call, with the span and match threshold of each of `configs`; all else is the decoder's own."""
        posts = self._without_entities(output, examples)
        return [
            [
                replace(post, entities=attach_regions(self.resolve(candidates), post.regions))
                for post, candidates in zip(
                    posts, self._entities(config, output, batch, examples), strict=True
                )
            ]
            for config in configs
        ]

    def _without_entities(self, output: Output, examples: Sequence[Example]) -> list[TaggedPost]:
        """All that no span or match threshold changes."""
        return [
            TaggedPost(
                regions=kept,
                best_regions=best,
                existence=tuple(zip(self.types, existence, strict=bool(existence))),
                image_width=example.letterbox.width if example.letterbox else None,
                image_height=example.letterbox.height if example.letterbox else None,
                image_status="ok" if example.letterbox else "none",
                text_status=example.text.status,
                text_read=example.text.text_read,
            )
            for (best, kept), existence, example in zip(
                self._regions(output, examples), self._existence(output, examples), examples, strict=True
            )
        ]

    def _existence(self, output: Output, examples: Sequence[Example]) -> list[list[float]]:
        """One score a query of each post, or none where existence is not answered."""
        if output.spans is None or not self._answers_existence:
            return [[] for _ in examples]
        scores: list[list[float]] = output.spans.existence_logits.float().softmax(-1)[..., 1].tolist()
        return scores

    def _entities(
        self, config: DecodeConfig, output: Output, batch: Batch, examples: Sequence[Example]
    ) -> list[list[Entity]]:
        """Every candidate of every post."""
        if output.spans is not None:
            return self._spans(config, output.spans, batch, examples)
        if output.words is not None:
            return self._words(output.words, batch, examples)
        return [[] for _ in examples]

    def _regions(
        self, output: Output, examples: Sequence[Example]
    ) -> list[tuple[tuple[Region, ...], tuple[Region, ...]]]:
        """The best regions and the kept ones of each post."""
        if output.box_logits is None or not self._answers_boxes:
            return [((), ()) for _ in examples]
        best_boxes, best_scores = self._best_boxes(output.box_logits)
        found: list[tuple[tuple[Region, ...], tuple[Region, ...]]] = []
        for p, example in enumerate(examples):
            if example.letterbox is None:
                found.append(((), ()))
                continue
            asked = example.phrase_ids or self.types  # further queries are only padding
            boxes_px = example.letterbox.to_picture(best_boxes[p, : len(asked)])
            best = [
                _region(kind, box, score)
                for kind, box, score in zip(asked, boxes_px.tolist(), best_scores[p].tolist(), strict=False)
            ]
            kept = best
            if self.config.regions == "several":
                kept = [
                    region
                    for k, kind in enumerate(asked)
                    for region in self._several(output.box_logits[p, k], kind, example.letterbox)
                ]
            found.append((tuple(best), tuple(region for region in kept if self._is_region(region))))
        return found

    def _best_boxes(self, box_logits: Tensor) -> tuple[boxes.Floats, boxes.Floats]:
        """Arg max of confidence: [P, K, 4] xyxy on the canvas and [P, K] scores."""
        best = box_logits[..., 4].argmax(-1)  # [P, K]
        chosen = box_logits.gather(2, best[..., None, None].expand(-1, -1, 1, 5)).squeeze(2)  # [P, K, 5]
        table = self._table.to(box_logits.device)[best]  # [P, K, 5]
        return boxes.decode(chosen, table).cpu().numpy(), chosen[..., 4].sigmoid().cpu().numpy()

    def _several(self, box_logits: Tensor, kind: str, letterbox: Letterbox) -> list[Region]:
        """The boxes of one query [C, 5] above the threshold after NMS, the most confident first."""
        scores = box_logits[:, 4].sigmoid()
        above = (scores >= self.config.region_threshold).nonzero().squeeze(-1)
        found = boxes.decode(box_logits[above], self._table.to(box_logits.device)[above])
        kept = torchvision.ops.nms(found, scores[above], self.config.nms_iou)
        boxes_px = letterbox.to_picture(found[kept].cpu().numpy())
        return [
            _region(kind, box, score)
            for box, score in zip(boxes_px.tolist(), scores[above][kept].tolist(), strict=True)
        ]

    def _is_region(self, region: Region) -> bool:
        """At or above the threshold, and not collapsed by clipping."""
        return (
            region.score >= self.config.region_threshold
            and region.x_max > region.x_min
            and region.y_max > region.y_min
        )

    def _words(self, words: WordLogits, batch: Batch, examples: Sequence[Example]) -> list[list[Entity]]:
        """Runs of word labels. The score of an entity is its words' mean [chosen]."""
        begins = batch.begins_word[:, 0]
        scores = words.labels.softmax(-1)
        found = []
        for p, labels in enumerate(words.best(begins)):
            text = examples[p].text
            first_pieces = [piece for piece, is_first in enumerate(text.begins_word) if is_first]
            # The last word may be cut, and then has no piece that ends it.
            last_pieces = [piece - 1 for piece in [*first_pieces[1:], len(text.ends)]]
            word_scores = scores[p][begins[p]].gather(1, torch.tensor(labels, device=scores.device)[:, None])
            found.append(
                [
                    self._entity(
                        text,
                        first_pieces[first],
                        last_pieces[last],
                        k,
                        float(word_scores[first : last + 1].mean()),
                    )
                    for first, last, k in label_runs(labels)
                ]
            )
        return found

    def _spans(
        self, config: DecodeConfig, spans: SpanLogits, batch: Batch, examples: Sequence[Example]
    ) -> list[list[Entity]]:
        """Start, end and match above their thresholds; the score is their product."""
        start_scores = spans.start_logits.float().softmax(-1)[..., 1]
        end_scores = spans.end_logits.float().softmax(-1)[..., 1]
        threshold = config.span_threshold
        pairs = candidate_pairs(
            (start_scores > threshold) & batch.begins_word, (end_scores > threshold) & batch.ends_word
        )
        match_scores = spans.match.at(pairs).float().sigmoid()
        post, query, start, end = pairs.unbind(-1)
        scores = start_scores[post, query, start] * end_scores[post, query, end] * match_scores
        kept = match_scores > config.match_threshold
        offsets = batch.sentence_offset.tolist()
        found: list[list[Entity]] = [[] for _ in examples]
        for (p, k, i, j), score in zip(pairs[kept].tolist(), scores[kept].tolist(), strict=True):
            offset = offsets[p][k]
            found[p].append(self._entity(examples[p].text, i - offset, j - offset, k, score))
        return found

    def _entity(self, text: EncodedText, first: int, last: int, k: int, score: float) -> Entity:
        """The entity of the type k from the piece `first` to the piece `last`."""
        start, end = text.starts[first], text.ends[last]
        return Entity(text.text[start:end], start, end, self.types[k], score)

    def resolve(self, candidates: Iterable[Entity]) -> tuple[Entity, ...]:
        """Greedy by score without overlap, within a type or, "flat", across all; in text order."""
        kept: list[Entity] = []
        for entity in sorted(candidates, key=lambda entity: (-entity.score, entity.start, entity.end)):
            rivals = (other for other in kept if self.config.overlap == "flat" or other.type == entity.type)
            if not any(entity.start < other.end and other.start < entity.end for other in rivals):
                kept.append(entity)
        return tuple(sorted(kept, key=lambda entity: (entity.start, entity.end, entity.type)))


def candidate_pairs(starts: Tensor, ends: Tensor) -> Tensor:
    """All (post, query, start, end) [N, 4] with start ≤ end from two masks [P, K, L]."""
    post, query, start = starts.nonzero().unbind(-1)
    at_start, end = ends[post, query].nonzero().unbind(-1)
    pairs = torch.stack([post[at_start], query[at_start], start[at_start], end], -1)
    return pairs[pairs[:, 2] <= pairs[:, 3]]


def _region(kind: str, xyxy_px: Sequence[float], score: float) -> Region:
    x_min, y_min, x_max, y_max = xyxy_px
    return Region(kind, x_min, y_min, x_max, y_max, score)
