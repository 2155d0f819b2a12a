"""The records of the project and the Arrow schema of every file it reads or writes.

Text offsets are Unicode code points, end exclusive. Box corners are pixels of the upright picture
(EXIF orientation applied), x to the right, y down, floats, with `x_min < x_max` and `y_min < y_max`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import pyarrow as pa

BoxSource = Literal["manual", "weak"]
ImageStatus = Literal["ok", "none", "missing", "forbidden", "unreadable", "too_large"]
TextStatus = Literal["ok", "empty", "truncated"]
Pictures = Literal["true", "shuffled", "none"]
"""With whose pictures posts are scored: their own, other posts', none."""

IMAGE_STATUSES: tuple[ImageStatus, ...] = ("ok", "none", "missing", "forbidden", "unreadable", "too_large")
TEXT_STATUSES: tuple[TextStatus, ...] = ("ok", "empty", "truncated")
PICTURES: tuple[Pictures, ...] = ("true", "shuffled", "none")


@dataclass(frozen=True, slots=True)
class Span:
    """An annotated entity: code points [start, end) of the post's text."""

    start: int
    end: int
    type: str


@dataclass(frozen=True, slots=True)
class Box:
    """An annotated box of an entity type, in pixels of the upright picture."""

    type: str
    x_min: float
    y_min: float
    x_max: float
    y_max: float
    source: BoxSource = "manual"
    score: float = 1.0

    @property
    def xyxy_px(self) -> tuple[float, float, float, float]:
        return self.x_min, self.y_min, self.x_max, self.y_max


@dataclass(frozen=True, slots=True)
class Phrase:
    """A phrase of a picture's caption that is asked for in the place of an entity type (phrase grounding)."""

    id: str
    phrase: str


@dataclass(frozen=True, slots=True)
class Post:
    """A post with, for training and scoring, its annotations.

    `image` is the encoded file. `boxes_annotated` says whether an absent box means "nothing to see"
    (True) or "nobody looked" (False). Of a post with `phrases` a box's type is the id of a phrase.
    """

    post_id: str
    text: str | None
    image: bytes | None = None
    entities: tuple[Span, ...] = ()
    boxes: tuple[Box, ...] = ()
    boxes_annotated: bool = False
    phrases: tuple[Phrase, ...] = ()


@dataclass(frozen=True, slots=True)
class Entity:
    """A tagged entity. Always `post.text[start:end] == text`; `region` indexes the post's regions."""

    text: str
    start: int
    end: int
    type: str
    score: float
    region: int | None = None


@dataclass(frozen=True, slots=True)
class Region:
    """A grounded entity type, in pixels of the upright picture number `image_index` of the post."""

    type: str
    x_min: float
    y_min: float
    x_max: float
    y_max: float
    score: float
    image_index: int = 0

    @property
    def xyxy_px(self) -> tuple[float, float, float, float]:
        return self.x_min, self.y_min, self.x_max, self.y_max


@dataclass(frozen=True, slots=True)
class TaggedPost:
    """What tagging says of one post: a row of the tags output but for the post's id and what is passed through.

    `existence` is the score of "the text names an entity of this type", per type; empty where it is not asked.
    `best_regions`, which are no part of the row, have the most confident box of every query, whatever its score;
    `regions` are those above the threshold, one a query or several. A region's type is that of its query, or the id
    of the post's own phrase.
    `image_width` and `image_height` are those of the upright picture, None without one. Of several pictures
    they and `image_status` are those of the first usable one (of the first, where none is). `text_read` is how many
    code points of the text the model has read, from its beginning on.
    """

    entities: tuple[Entity, ...] = ()
    regions: tuple[Region, ...] = ()
    best_regions: tuple[Region, ...] = ()
    existence: tuple[tuple[str, float], ...] = ()
    image_width: int | None = None
    image_height: int | None = None
    image_status: ImageStatus = "none"
    text_status: TextStatus = "ok"
    text_read: int = 0
    error: str | None = None


SPAN_TYPE = pa.struct([("start", pa.int32()), ("end", pa.int32()), ("type", pa.string())])
BOX_TYPE = pa.struct(
    [
        ("type", pa.string()),
        ("x_min", pa.float32()),
        ("y_min", pa.float32()),
        ("x_max", pa.float32()),
        ("y_max", pa.float32()),
        ("source", pa.string()),
        ("score", pa.float32()),
    ]
)
PHRASE_TYPE = pa.struct([("id", pa.string()), ("phrase", pa.string())])
ENTITY_TYPE = pa.struct(
    [
        ("text", pa.string()),
        ("start", pa.int32()),
        ("end", pa.int32()),
        ("type", pa.string()),
        ("score", pa.float32()),
        ("region", pa.int32()),
    ]
)
REGION_TYPE = pa.struct(
    [
        ("type", pa.string()),
        ("x_min", pa.float32()),
        ("y_min", pa.float32()),
        ("x_max", pa.float32()),
        ("y_max", pa.float32()),
        ("score", pa.float32()),
        ("image_index", pa.int32()),
    ]
)
PICTURE_TYPE = pa.struct(
    [("status", pa.string()), ("width", pa.int32()), ("height", pa.int32()), ("error", pa.string())]
)
EXISTENCE_TYPE = pa.struct([("type", pa.string()), ("score", pa.float32())])

TRAINING_SCHEMA = pa.schema(
    [
        ("post_id", pa.string()),
        ("text", pa.string()),
        ("image", pa.binary()),
        ("entities", pa.list_(SPAN_TYPE)),
        ("boxes", pa.list_(BOX_TYPE)),
        ("boxes_annotated", pa.bool_()),
        ("phrases", pa.list_(PHRASE_TYPE)),
    ]
)

ROW_HASH = "row_hash"
"""The column that names a row of the archive: a digest of its file's path and its place in the file."""

_TAG_FIELDS = [
    pa.field("entities", pa.list_(ENTITY_TYPE)),
    pa.field("regions", pa.list_(REGION_TYPE)),
    pa.field("existence", pa.list_(EXISTENCE_TYPE)),
    pa.field("image_width", pa.int32()),
    pa.field("image_height", pa.int32()),
    pa.field("image_status", pa.string()),
    pa.field("text_status", pa.string()),
    pa.field("text_read", pa.int32()),
    pa.field("error", pa.string()),
    pa.field("retryable", pa.bool_()),
    pa.field("model_id", pa.string()),
    pa.field(ROW_HASH, pa.uint64()),
]


def tags_schema(pass_through: Sequence[pa.Field] = (), *, several_pictures: bool = False) -> pa.Schema:
    """The output schema of tagging: post_id, the archive's pass-through columns, then the tags.

    Archives with several pictures a post have the column `images`, too: what became of each.
    """
    images = [pa.field("images", pa.list_(PICTURE_TYPE))] if several_pictures else []
    return pa.schema([pa.field("post_id", pa.string()), *pass_through, *images, *_TAG_FIELDS])
