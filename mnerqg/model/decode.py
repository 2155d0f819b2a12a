"""From what was found to answers: entities with character offsets and boxes in pixels.

Nothing here imports torch.
"""

from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from mnerqg.config import DecodeConfig
from mnerqg.inputs.images import Letterbox
from mnerqg.inputs.posts import attach_regions
from mnerqg.inputs.text import EncodedText
from mnerqg.model.found import Found
from mnerqg.schema import Entity, Region, TaggedPost


@dataclass(frozen=True, slots=True)
class Seen:
    """What the network has seen of a post: a window of its text, and a picture, of which the way back to its pixels is
    left. `phrase_ids` name the post's own queries."""

    text: EncodedText
    letterbox: Letterbox | None = None
    phrase_ids: tuple[str, ...] = ()


class Decoder:
    """Turns what was found into answers.

    Args:
        config: the threshold of regions and the overlap rule; those of spans have done their work already.
        types: the K entity types in the order of the queries.
    """

    def __init__(self, *, config: DecodeConfig, types: Sequence[str]) -> None:
        self.config = config
        self.types = tuple(types)

    def __call__(self, found: Found, posts: Sequence[Seen]) -> list[TaggedPost]:
        """The answers of P posts, in order."""
        entities: list[list[Entity]] = [[] for _ in posts]
        for (post, k, first, last), score in zip(
            found.spans.tolist(), found.span_scores.tolist(), strict=True
        ):
            text = posts[post].text
            start, end = text.starts[first], text.ends[last]
            entities[post].append(Entity(text.text[start:end], start, end, self.types[k], score))
        answers = []
        for seen, candidates, (best, kept), existence in zip(
            posts, entities, self._regions(found, posts), found.existence.tolist(), strict=True
        ):
            answers.append(
                TaggedPost(
                    entities=attach_regions(self.resolve(candidates), kept),
                    regions=kept,
                    best_regions=best,
                    existence=tuple(zip(self.types, existence, strict=bool(existence))),
                    image_width=seen.letterbox.width if seen.letterbox else None,
                    image_height=seen.letterbox.height if seen.letterbox else None,
                    image_status="ok" if seen.letterbox else "none",
                    text_status=seen.text.status,
                    text_read=seen.text.text_read,
                )
            )
        return answers

    def _regions(
        self, found: Found, posts: Sequence[Seen]
    ) -> list[tuple[tuple[Region, ...], tuple[Region, ...]]]:
        """The best regions and the kept ones of each post."""
        best: list[list[Region]] = [[] for _ in posts]
        kept: list[list[Region]] = [[] for _ in posts]
        scores = found.box_scores.tolist()
        borders = [0, *(np.flatnonzero(np.diff(found.boxes[:, 0])) + 1).tolist(), len(scores)]
        for start, stop in pairwise(borders if scores else []):
            post = int(found.boxes[start, 0])
            seen = posts[post]
            if seen.letterbox is None:
                continue
            asked = seen.phrase_ids or self.types  # further queries are only padding
            boxes_px = seen.letterbox.to_picture(found.boxes_canvas[start:stop]).tolist()
            queries = found.boxes[start:stop, 1].tolist()
            before = None
            for k, box, score in zip(queries, boxes_px, scores[start:stop], strict=True):
                if k >= len(asked):
                    break
                region = _region(asked[k], box, score)
                if k != before:
                    best[post].append(region)
                if self._is_region(region):
                    kept[post].append(region)
                before = k
        return [(tuple(one), tuple(other)) for one, other in zip(best, kept, strict=True)]

    def _is_region(self, region: Region) -> bool:
        """At or above the threshold, and not collapsed by clipping."""
        return (
            region.score >= self.config.region_threshold
            and region.x_max > region.x_min
            and region.y_max > region.y_min
        )

    def resolve(self, candidates: Iterable[Entity]) -> tuple[Entity, ...]:
        """See `without_overlap`: within each type or, "flat", across all; in text order."""
        rivals: dict[str, list[Entity]] = {}
        for entity in candidates:
            rivals.setdefault("" if self.config.overlap == "flat" else entity.type, []).append(entity)
        kept = [entity for some in rivals.values() for entity in without_overlap(some)]
        return tuple(sorted(kept, key=lambda entity: (entity.start, entity.end, entity.type)))


def without_overlap(candidates: Iterable[Entity]) -> list[Entity]:
    """Those of the candidates that do not overlap and whose scores have the largest sum (weighted interval scheduling).

    The start of one name and the end of the next often match, too. Where the surest candidate came first such a pair,
    from the one's first to the other's last word, took the place of both names [chosen].
    """
    ordered = sorted(candidates, key=lambda entity: (entity.end, entity.start, entity.type))
    ends = [entity.end for entity in ordered]
    # Of each candidate how many end where it starts, or earlier.
    before = [bisect_right(ends, entity.start) for entity in ordered]
    sums = [0.0]  # of the best among the first 0, 1, 2, … candidates
    for number, entity in enumerate(ordered):
        sums.append(max(sums[number], sums[before[number]] + entity.score))
    kept = []
    left = len(ordered)
    while left:
        if sums[left] > sums[left - 1]:
            kept.append(ordered[left - 1])
            left = before[left - 1]
        else:
            left -= 1
    return kept


def _region(kind: str, xyxy_px: Sequence[float], score: float) -> Region:
    x_min, y_min, x_max, y_max = xyxy_px
    return Region(kind, x_min, y_min, x_max, y_max, score)
