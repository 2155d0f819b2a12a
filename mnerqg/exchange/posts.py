"""A post on its way to people who correct it, and on its way back; the formats are `label_studio` and `coco`."""

from dataclasses import dataclass
from typing import Literal

from mnerqg.schema import Entity, Region, Span


@dataclass(frozen=True, slots=True)
class Picture:
    """A picture of a post: where it lies and, where that is known, its upright size in pixels."""

    uri: str
    width: int | None = None
    height: int | None = None


@dataclass(frozen=True, slots=True)
class TaggedText:
    """A post as the model tagged it. `image_index` of a region counts `pictures`, which are the usable ones."""

    post_id: str
    text: str
    pictures: tuple[Picture, ...]
    entities: tuple[Entity, ...]
    regions: tuple[Region, ...]
    model_id: str


@dataclass(frozen=True, slots=True)
class CorrectedBox:
    """A box that a person drew, in pixels of its picture or in percent of the picture's edges.

    `place` says where it stands, for complaints about it.
    """

    place: str
    type: str
    xyxy: tuple[float, float, float, float]
    unit: Literal["px", "percent"]


@dataclass(frozen=True, slots=True)
class CorrectedPicture:
    """A picture that a person has looked at, with all its boxes."""

    picture: Picture
    boxes: tuple[CorrectedBox, ...] = ()


@dataclass(frozen=True, slots=True)
class CorrectedPost:
    """A post as a person left it. `place` names it for complaints, such as "task 12"."""

    place: str
    post_id: str
    text: str
    entities: tuple[Span, ...]
    pictures: tuple[CorrectedPicture, ...] = ()


class Unclear:
    """What was not understood of a file of corrections, each with its place; nothing of it is guessed at."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def add(self, place: str, words: str) -> None:
        """Name one thing."""
        self.lines.append(f"{place}: {words}")
