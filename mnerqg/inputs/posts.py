"""A post on its way: prepared before the model sees it, put together from the answers afterwards.

Nothing here imports torch: the driver of a run and its picture workers do without.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from mnerqg.config_jobs import ImageLimits
from mnerqg.inputs.annotations import decode_picture
from mnerqg.inputs.images import Letterbox, Pixels
from mnerqg.inputs.picture_files import ImageProblem
from mnerqg.schema import Box, Entity, ImageStatus, Post, Region, TaggedPost


@dataclass(frozen=True, slots=True)
class PreparedPost:
    """What the model is given of a post: its text and its picture, decoded or found not to be one.

    It has no id: who asks knows which answer is whose. `pixels` is the letterboxed canvas [S, S, 3] uint8 and
    `letterbox` its way back to the picture.
    """

    text: str | None
    pixels: Pixels | None = None
    letterbox: Letterbox | None = None
    image_status: ImageStatus = "none"
    error: str | None = None


def prepare_post(post: Post, side: int, limits: ImageLimits, region: Box | None = None) -> PreparedPost:
    """Decode and letterbox a post's picture, or `region` of it; a bad one is a status, never an exception."""
    if post.image is None:
        return PreparedPost(post.text)
    try:
        pixels, letterbox, flaw = decode_picture(post.image, side, limits, region)
    except ImageProblem as problem:
        return PreparedPost(post.text, image_status=problem.status, error=str(problem))
    return PreparedPost(post.text, pixels, letterbox, image_status="ok", error=flaw)


def merge_pictures(answers: Sequence[TaggedPost], indices: Sequence[int]) -> TaggedPost:
    """One post from the answers for each of its usable pictures.

    Args:
        answers: at least one, in the order of the pictures.
        indices: the place of each answer's picture among all pictures of the post.

    The entities are those read with the first picture (chosen: the text decides most of them, and one answer is
    consistent in itself); every picture gives its regions, and an entity points to the best region of its type.
    """
    first = next((answer for answer in answers if not answer.error), answers[0])
    regions = _numbered([answer.regions for answer in answers], indices)
    errors = [answer.error for answer in answers if answer.error]
    return replace(
        first,
        entities=attach_regions(first.entities, regions),
        regions=regions,
        best_regions=_numbered([answer.best_regions for answer in answers], indices),
        error="; ".join(dict.fromkeys(errors)) or None,
    )


def _numbered(of_pictures: Sequence[Sequence[Region]], indices: Sequence[int]) -> tuple[Region, ...]:
    """The regions of all pictures, each with the place of its picture."""
    return tuple(
        replace(region, image_index=index)
        for regions, index in zip(of_pictures, indices, strict=True)
        for region in regions
    )


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
