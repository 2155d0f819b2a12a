"""Which of a post's annotations are learned from (`TrainConfig.boxes`), and what of its picture is looked at."""

import hashlib
import random
from dataclasses import dataclass, replace

from mnerqg.config import TrainConfig
from mnerqg.config_jobs import ImageLimits
from mnerqg.inputs.images import Canvas, decode_letterbox, decode_region
from mnerqg.schema import Box, Post


@dataclass(frozen=True, slots=True)
class Annotations:
    """A post with the boxes to learn from, and the types of which nobody knows whether they are shown."""

    post: Post
    unknown_types: frozenset[str] = frozenset()


def choose_annotations(post: Post, config: TrainConfig) -> Annotations:
    """The annotations that `config` asks for.

    Weak boxes count for the types that the text names: the labeller answers every type. Of those it is unsure of
    neither the box nor its absence is learned.
    """
    manual = tuple(box for box in post.boxes if box.source == "manual")
    is_boxed = post.boxes_annotated and _draw(post.post_id) < config.boxed_share
    if config.boxes == "manual" or (config.boxes == "manual_where_present" and is_boxed):
        return Annotations(replace(post, boxes=manual if is_boxed else (), boxes_annotated=is_boxed))
    weak = [box for box in post.boxes if box.source == "weak"]
    named = {span.type for span in post.entities}
    sure = tuple(box for box in weak if box.type in named and box.score >= config.min_weak_score)
    return Annotations(
        replace(post, boxes=sure, boxes_annotated=bool(weak)),
        frozenset(named - {box.type for box in sure}),
    )


def draw_phrases(post: Post, count: int, generator: random.Random) -> Post:
    """The post with at most `count` of its phrases, in their order."""
    if len(post.phrases) <= count:
        return post
    chosen = sorted(generator.sample(range(len(post.phrases)), count))
    return replace(post, phrases=tuple(post.phrases[index] for index in chosen))


def best_region(post: Post) -> Box | None:
    """The weak box that the labeller was surest of, whatever its type; None without one."""
    weak = [box for box in post.boxes if box.source == "weak"]
    return max(weak, key=lambda box: box.score, default=None)


def decode_picture(image: bytes, side: int, limits: ImageLimits, region: Box | None) -> Canvas:
    """The picture on its canvas, cut to `region` first where there is one. Raises ImageProblem."""
    if region is None:
        return decode_letterbox(image, side, limits)
    return decode_region(image, side, limits, region.xyxy_px)


def _draw(post_id: str) -> float:
    """A number in [0, 1) that belongs to the post, the same in every run."""
    digest = hashlib.sha256(post_id.encode("utf-8", "surrogatepass")).digest()
    return int.from_bytes(digest[:8], "big") / 2**64
