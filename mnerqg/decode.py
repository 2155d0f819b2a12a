"""From logits to entities with character offsets and boxes in pixels (DESIGN §4 "Decoding")."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mnerqg import boxes
from mnerqg.config import DecodeConfig
from mnerqg.data.batch import Batch, Example
from mnerqg.losses import candidate_pairs
from mnerqg.model.heads import MatchHead
from mnerqg.model.mnerqg import Output
from mnerqg.schema import Entity, Region


@dataclass(frozen=True, slots=True)
class Decoded:
    """The model's answers for one post.

    `best_regions` has the most confident box of every type, whatever its score, and is empty without a
    picture; `Decoder.regions` keeps those above the threshold. `existence` has one score a query.
    """

    entities: tuple[Entity, ...]
    best_regions: tuple[Region, ...]
    existence: tuple[float, ...]


class Decoder:
    """Turns outputs into answers.

    Args:
        config: thresholds and the overlap rule.
        types: the K entity types in the order of the queries.
        anchors: of the model's canvas.
        match_head: scores start-end pairs.
    """

    def __init__(
        self, *, config: DecodeConfig, types: Sequence[str], anchors: boxes.Anchors, match_head: MatchHead
    ) -> None:
        self.config = config
        self.types = tuple(types)
        self._table = torch.from_numpy(anchors.table())
        self._match_head = match_head

    @torch.no_grad()
    def __call__(
        self, output: Output, batch: Batch, examples: Sequence[Example], texts: Sequence[str]
    ) -> list[Decoded]:
        """Answers of P posts, in order.

        Args:
            output: of the model for `batch`.
            batch: the batch of `examples`.
            examples: P examples; those with a picture have their letterbox.
            texts: P original texts.
        """
        spans = self._spans(output, batch, examples, texts)
        best_boxes, best_scores = self._best_boxes(output.box_logits)
        existence = output.existence_logits.float().softmax(-1)[..., 1].cpu().numpy()
        decoded = []
        for p, example in enumerate(examples):
            regions: tuple[Region, ...] = ()
            if example.letterbox is not None:
                boxes_px = example.letterbox.to_picture(best_boxes[p])
                regions = tuple(
                    Region(kind, box[0], box[1], box[2], box[3], score)
                    for kind, box, score in zip(
                        self.types, boxes_px.tolist(), best_scores[p].tolist(), strict=True
                    )
                )
            decoded.append(
                Decoded(self._resolve(spans[p]), regions, tuple(float(score) for score in existence[p]))
            )
        return decoded

    def regions(self, decoded: Decoded) -> tuple[Region, ...]:
        """The grounded regions: score at or above the threshold and not collapsed by clipping."""
        return tuple(
            region
            for region in decoded.best_regions
            if region.score >= self.config.region_threshold
            and region.x_max > region.x_min
            and region.y_max > region.y_min
        )

    def _best_boxes(self, box_logits: Tensor) -> tuple[boxes.Floats, boxes.Floats]:
        """Arg max of confidence: [P, K, 4] xyxy on the canvas and [P, K] scores."""
        best = box_logits[..., 4].argmax(-1)  # [P, K]
        chosen = box_logits.gather(2, best[..., None, None].expand(-1, -1, 1, 5)).squeeze(2)  # [P, K, 5]
        table = self._table.to(box_logits.device)[best]  # [P, K, 5]
        return boxes.decode(chosen, table).cpu().numpy(), chosen[..., 4].sigmoid().cpu().numpy()

    def _spans(
        self, output: Output, batch: Batch, examples: Sequence[Example], texts: Sequence[str]
    ) -> list[list[Entity]]:
        """Every candidate of every post: start, end and match above their thresholds, score = product."""
        start_scores = output.start_logits.float().softmax(-1)[..., 1]
        end_scores = output.end_logits.float().softmax(-1)[..., 1]
        threshold = self.config.span_threshold
        pairs = candidate_pairs(
            (start_scores > threshold) & batch.begins_word, (end_scores > threshold) & batch.ends_word
        )
        logits = self._match_head.pair_logits(output.match_start, output.match_end, pairs)
        match_scores = logits.float().sigmoid()
        post, query, start, end = pairs.unbind(-1)
        scores = start_scores[post, query, start] * end_scores[post, query, end] * match_scores
        kept = match_scores > self.config.match_threshold
        offsets = batch.sentence_offset.tolist()
        spans: list[list[Entity]] = [[] for _ in examples]
        for (p, k, i, j), score in zip(pairs[kept].tolist(), scores[kept].tolist(), strict=True):
            text = examples[p].text
            first, last = text.starts[i - offsets[k]], text.ends[j - offsets[k]]
            spans[p].append(Entity(texts[p][first:last], first, last, self.types[k], score))
        return spans

    def _resolve(self, candidates: list[Entity]) -> tuple[Entity, ...]:
        """Greedy by score without overlap, within a type or, "flat", across all; in text order."""
        kept: list[Entity] = []
        for entity in sorted(candidates, key=lambda entity: (-entity.score, entity.start, entity.end)):
            rivals = (other for other in kept if self.config.overlap == "flat" or other.type == entity.type)
            if not any(entity.start < other.end and other.start < entity.end for other in rivals):
                kept.append(entity)
        return tuple(sorted(kept, key=lambda entity: (entity.start, entity.end, entity.type)))


def attach_regions(entities: Sequence[Entity], regions: Sequence[Region]) -> tuple[Entity, ...]:
    """Entities with the index of the best region of their type, None where there is none."""
    index: dict[str, int] = {}
    for number, region in enumerate(regions):
        if region.type not in index or region.score > regions[index[region.type]].score:
            index[region.type] = number
    return tuple(
        Entity(entity.text, entity.start, entity.end, entity.type, entity.score, index.get(entity.type))
        for entity in entities
    )
