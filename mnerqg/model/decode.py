"""From logits to answers: entities with character offsets and boxes in pixels (DESIGN §4 "Decoding")."""

from collections.abc import Iterable, Sequence
from dataclasses import replace

import torch
import torchvision.ops

from mnerqg import boxes
from mnerqg.config import DecodeConfig
from mnerqg.inputs.batch import Batch
from mnerqg.inputs.examples import Example
from mnerqg.inputs.images import Letterbox
from mnerqg.inputs.posts import attach_regions
from mnerqg.inputs.text import EncodedText
from mnerqg.model.answers import Answers
from mnerqg.model.output import Output
from mnerqg.model.words import label_runs
from mnerqg.schema import Entity, Region, TaggedPost

_MOST_BOXES = (
    100  # of a query are looked at where it may have several regions, the most confident ones [chosen]
)


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

    def at_each(
        self, configs: Sequence[DecodeConfig], output: Output, batch: Batch, examples: Sequence[Example]
    ) -> list[list[TaggedPost]]:
        """As a call, with the span and match threshold of each of `configs`; all else is the decoder's own."""
        answers = self.reduce(output, batch, min(config.span_threshold for config in configs))
        posts = self._without_entities(answers, examples)
        return [self._with_entities(posts, answers, config, examples) for config in configs]

    def reduce(self, output: Output, batch: Batch, lowest: float | None = None) -> Answers:
        """All of a network's output that answers are made of, on the host.

        Args:
            output: of the network for `batch`.
            batch: that was answered.
            lowest: the lowest span threshold that will be asked for; None: the decoder's own.
        """
        self._table = self._table.to(batch.begins_word.device)  # once: it is not sent with every batch
        return Answers.of(
            output,
            batch,
            table=self._table if self._answers_boxes else None,
            most_boxes=1 if self.config.regions == "one" else _MOST_BOXES,
            lowest=self.config.span_threshold if lowest is None else lowest,
        )

    def _with_entities(
        self,
        posts: Sequence[TaggedPost],
        answers: Answers,
        config: DecodeConfig,
        examples: Sequence[Example],
    ) -> list[TaggedPost]:
        return [
            replace(post, entities=attach_regions(self.resolve(candidates), post.regions))
            for post, candidates in zip(posts, self._entities(config, answers, examples), strict=True)
        ]

    def _without_entities(self, answers: Answers, examples: Sequence[Example]) -> list[TaggedPost]:
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
                self._regions(answers, examples), self._existence(answers, examples), examples, strict=True
            )
        ]

    def _existence(self, answers: Answers, examples: Sequence[Example]) -> list[list[float]]:
        """One score a query of each post, or none where existence is not answered."""
        if answers.spans is None or not self._answers_existence:
            return [[] for _ in examples]
        scores: list[list[float]] = answers.spans.existence_scores.tolist()
        return scores

    def _entities(
        self, config: DecodeConfig, answers: Answers, examples: Sequence[Example]
    ) -> list[list[Entity]]:
        """Every candidate of every post."""
        if answers.word_labels is not None:
            return self._words(answers, examples)
        found: list[list[Entity]] = [[] for _ in examples]
        if answers.spans is not None:
            for p, k, first, last, score in answers.spans.spans(
                config.span_threshold, config.match_threshold
            ):
                found[p].append(self._entity(examples[p].text, first, last, k, score))
        return found

    def _regions(
        self, answers: Answers, examples: Sequence[Example]
    ) -> list[tuple[tuple[Region, ...], tuple[Region, ...]]]:
        """The best regions and the kept ones of each post."""
        if answers.boxes_canvas is None or answers.box_scores is None:
            return [((), ()) for _ in examples]
        found: list[tuple[tuple[Region, ...], tuple[Region, ...]]] = []
        for example, boxes_canvas, scores in zip(
            examples, answers.boxes_canvas, answers.box_scores, strict=True
        ):
            if example.letterbox is None:
                found.append(((), ()))
                continue
            asked = example.phrase_ids or self.types  # further queries are only padding
            best_px = example.letterbox.to_picture(boxes_canvas[: len(asked), 0])
            best = [
                _region(kind, box, score)
                for kind, box, score in zip(asked, best_px.tolist(), scores[:, 0].tolist(), strict=False)
            ]
            kept = best
            if self.config.regions == "several":
                kept = [
                    region
                    for k, kind in enumerate(asked)
                    for region in self._several(boxes_canvas[k], scores[k], kind, example.letterbox)
                ]
            found.append((tuple(best), tuple(region for region in kept if self._is_region(region))))
        return found

    def _several(
        self, boxes_canvas: boxes.Floats, scores: boxes.Floats, kind: str, letterbox: Letterbox
    ) -> list[Region]:
        """The boxes of one query [N, 4] above the threshold after NMS, the most confident first."""
        above = scores >= self.config.region_threshold
        found, scores = torch.from_numpy(boxes_canvas[above]), scores[above]
        kept = torchvision.ops.nms(found, torch.from_numpy(scores), self.config.nms_iou).numpy()
        boxes_px = letterbox.to_picture(found.numpy()[kept])
        return [
            _region(kind, box, score)
            for box, score in zip(boxes_px.tolist(), scores[kept].tolist(), strict=True)
        ]

    def _is_region(self, region: Region) -> bool:
        """At or above the threshold, and not collapsed by clipping."""
        return (
            region.score >= self.config.region_threshold
            and region.x_max > region.x_min
            and region.y_max > region.y_min
        )

    def _words(self, answers: Answers, examples: Sequence[Example]) -> list[list[Entity]]:
        """Runs of word labels. The score of an entity is its words' mean [chosen]."""
        assert answers.word_labels is not None
        assert answers.word_scores is not None
        found = []
        for example, of_pieces, scores in zip(
            examples, answers.word_labels, answers.word_scores, strict=True
        ):
            text, begins = example.text, of_pieces >= 0
            first_pieces = [piece for piece, is_first in enumerate(text.begins_word) if is_first]
            # The last word may be cut, and then has no piece that ends it.
            last_pieces = [piece - 1 for piece in [*first_pieces[1:], len(text.ends)]]
            of_words = scores[begins]
            found.append(
                [
                    self._entity(
                        text,
                        first_pieces[first],
                        last_pieces[last],
                        k,
                        float(of_words[first : last + 1].mean()),
                    )
                    for first, last, k in label_runs(of_pieces[begins].astype(int).tolist())
                ]
            )
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


def _region(kind: str, xyxy_px: Sequence[float], score: float) -> Region:
    x_min, y_min, x_max, y_max = xyxy_px
    return Region(kind, x_min, y_min, x_max, y_max, score)
