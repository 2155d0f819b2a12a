"""From logits to entities with character offsets and boxes in pixels (DESIGN §4 "Decoding")."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torchvision.ops
from torch import Tensor

from mnerqg import boxes
from mnerqg.config import DecodeConfig
from mnerqg.inputs.batch import Batch, Example
from mnerqg.inputs.images import Letterbox
from mnerqg.model.build import Network
from mnerqg.model.losses import candidate_pairs
from mnerqg.model.mnerqg import MNERQG, Output
from mnerqg.model.sequence import SequenceTagger
from mnerqg.schema import Entity, Region


@dataclass(frozen=True, slots=True)
class Decoded:
    """The model's answers for one post.

    `best_regions` has the most confident box of every query, whatever its score, and is empty without a
    picture; `regions` are those above the threshold, one a query or several. A region's type is that of its query,
    or the id of the post's own phrase. `existence` has one score a query, or none where it is not asked.
    """

    entities: tuple[Entity, ...]
    best_regions: tuple[Region, ...] = ()
    regions: tuple[Region, ...] = ()
    existence: tuple[float, ...] = ()


class Decoder:
    """Turns outputs into answers.

    Args:
        config: thresholds, the overlap rule, one region a query or several.
        types: the K entity types in the order of the queries.
        anchors: of the model's canvas.
        network: scores start-end pairs, or finds the best tags.
        answers_boxes, answers_existence: false leaves out what these heads say, where they are untrained (see
            `LossConfig`).
    """

    def __init__(
        self,
        *,
        config: DecodeConfig,
        types: Sequence[str],
        anchors: boxes.Anchors,
        network: Network,
        answers_boxes: bool = True,
        answers_existence: bool = True,
    ) -> None:
        self.config = config
        self.types = tuple(types)
        self._table = torch.from_numpy(anchors.table())
        self._network = network
        self._answers_boxes = answers_boxes
        self._answers_existence = answers_existence

    def __call__(
        self, output: Output, batch: Batch, examples: Sequence[Example], texts: Sequence[str]
    ) -> list[Decoded]:
        """Answers of P posts, in order.

        Args:
            output: of the network for `batch`.
            batch: the batch of `examples`.
            examples: P examples; those with a picture have their letterbox.
            texts: P original texts.
        """
        return self.at_each([self.config], output, batch, examples, texts)[0]

    @torch.no_grad()
    def at_each(
        self,
        configs: Sequence[DecodeConfig],
        output: Output,
        batch: Batch,
        examples: Sequence[Example],
        texts: Sequence[str],
    ) -> list[list[Decoded]]:
        """As a call, with the span and match threshold of each of `configs`; all else is the decoder's own."""
        regions = self._regions(output, examples)
        existence: list[list[float]] = [[] for _ in examples]
        if output.existence_logits is not None and self._answers_existence:
            existence = output.existence_logits.float().softmax(-1)[..., 1].tolist()
        return [
            [
                Decoded(self._resolve(candidates), *found, tuple(exists))
                for candidates, found, exists in zip(
                    self._entities(config, output, batch, examples, texts), regions, existence, strict=True
                )
            ]
            for config in configs
        ]

    def _entities(
        self,
        config: DecodeConfig,
        output: Output,
        batch: Batch,
        examples: Sequence[Example],
        texts: Sequence[str],
    ) -> list[list[Entity]]:
        if isinstance(self._network, SequenceTagger):
            return self._tagged(self._network, output, batch, examples, texts)
        if output.start_logits is None:
            return [[] for _ in examples]
        return self._spans(config, output, batch, examples, texts)

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

    def _tagged(
        self,
        network: SequenceTagger,
        output: Output,
        batch: Batch,
        examples: Sequence[Example],
        texts: Sequence[str],
    ) -> list[list[Entity]]:
        """The baselines' entities: runs of B and I; a stray I begins one. The score is the words' mean [chosen]."""
        assert output.tag_logits is not None
        begins = batch.begins_word[:, 0]
        scores = output.tag_logits.softmax(-1)
        found = []
        for p, tags in enumerate(network.best_tags(output.tag_logits, begins)):
            text = examples[p].text
            first_pieces = [piece for piece, is_first in enumerate(text.begins_word) if is_first]
            # The last word may be cut, and then has no piece that ends it.
            last_pieces = [piece - 1 for piece in [*first_pieces[1:], len(text.ends)]]
            word_scores = scores[p][begins[p]].gather(1, torch.tensor(tags, device=scores.device)[:, None])
            entities = []
            for first, last, k in tag_runs(tags):
                start, end = text.starts[first_pieces[first]], text.ends[last_pieces[last]]
                score = float(word_scores[first : last + 1].mean())
                entities.append(Entity(texts[p][start:end], start, end, self.types[k], score))
            found.append(entities)
        return found

    def _spans(
        self,
        config: DecodeConfig,
        output: Output,
        batch: Batch,
        examples: Sequence[Example],
        texts: Sequence[str],
    ) -> list[list[Entity]]:
        """Every candidate of every post: start, end and match above their thresholds, score = product."""
        assert output.start_logits is not None
        assert output.end_logits is not None
        start_scores = output.start_logits.float().softmax(-1)[..., 1]
        end_scores = output.end_logits.float().softmax(-1)[..., 1]
        threshold = config.span_threshold
        pairs = candidate_pairs(
            (start_scores > threshold) & batch.begins_word, (end_scores > threshold) & batch.ends_word
        )
        match_scores = self._match_scores(output, pairs)
        post, query, start, end = pairs.unbind(-1)
        scores = start_scores[post, query, start] * end_scores[post, query, end] * match_scores
        kept = match_scores > config.match_threshold
        offsets = batch.sentence_offset.tolist()
        spans: list[list[Entity]] = [[] for _ in examples]
        for (p, k, i, j), score in zip(pairs[kept].tolist(), scores[kept].tolist(), strict=True):
            text = examples[p].text
            first, last = text.starts[i - offsets[p][k]], text.ends[j - offsets[p][k]]
            spans[p].append(Entity(texts[p][first:last], first, last, self.types[k], score))
        return spans

    def _match_scores(self, output: Output, pairs: Tensor) -> Tensor:
        assert isinstance(self._network, MNERQG)
        assert self._network.match is not None
        assert output.match_start is not None
        assert output.match_end is not None
        logits = self._network.match.pair_logits(output.match_start, output.match_end, pairs)
        return logits.float().sigmoid()

    def _resolve(self, candidates: list[Entity]) -> tuple[Entity, ...]:
        """Greedy by score without overlap, within a type or, "flat", across all; in text order."""
        kept: list[Entity] = []
        for entity in sorted(candidates, key=lambda entity: (-entity.score, entity.start, entity.end)):
            rivals = (other for other in kept if self.config.overlap == "flat" or other.type == entity.type)
            if not any(entity.start < other.end and other.start < entity.end for other in rivals):
                kept.append(entity)
        return tuple(sorted(kept, key=lambda entity: (entity.start, entity.end, entity.type)))


def _region(kind: str, xyxy_px: Sequence[float], score: float) -> Region:
    x_min, y_min, x_max, y_max = xyxy_px
    return Region(kind, x_min, y_min, x_max, y_max, score)


def tag_runs(tags: Sequence[int]) -> list[tuple[int, int, int]]:
    """(first word, last word, type index) of each entity that tags of words spell (see `model.sequence`)."""
    runs: list[tuple[int, int, int]] = []
    for word, tag in enumerate(tags):
        if tag == 0:
            continue
        kind = (tag - 1) // 2
        goes_on = tag % 2 == 0 and bool(runs) and runs[-1][1:] == (word - 1, kind)
        first = runs.pop()[0] if goes_on else word
        runs.append((first, word, kind))
    return runs
