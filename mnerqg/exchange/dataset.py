"""Corrected posts as a prepared dataset (`schema.TRAINING_SCHEMA`) to train on with.

A row has one picture: a post with several becomes as many rows, of the same id, text and entities.
"""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from mnerqg.datasets.importing import check_output, write_dataset
from mnerqg.datasets.refusals import DatasetSummary, SplitFigures
from mnerqg.datasets.voc import clip, fault
from mnerqg.errors import DataError
from mnerqg.exchange.posts import CorrectedBox, CorrectedPicture, CorrectedPost, Unclear
from mnerqg.inputs.images import decode
from mnerqg.inputs.picture_files import ImageProblem
from mnerqg.io.picture_store import PictureStore
from mnerqg.schema import Box, Post

_CLIPPED_PX = 0.01
"""What a box may lie outside of its picture, by rounding, without being counted as clipped."""


@dataclass
class CorrectionFigures(SplitFigures):
    """What came of a split; `posts` counts rows, one a picture."""

    entities: int = 0
    boxes: int = 0
    boxes_clipped: int = 0


@dataclass
class CorrectionSummary(DatasetSummary[CorrectionFigures]):
    """What an import wrote, with all that it did not understand."""

    unclear: list[str] = field(default_factory=list)

    def to_dict(self) -> dict[str, object]:
        """The content of `summary.json`."""
        return {**super().to_dict(), "unclear": self.unclear}


def write_corrections(
    posts: Sequence[CorrectedPost],
    store: PictureStore,
    unclear: Unclear,
    output: str,
    *,
    source: str,
    valid_share: float,
    overwrite: bool = False,
) -> CorrectionSummary:
    """Write the splits train and valid, all or nothing.

    Args:
        posts: as they were read.
        store: reads their pictures.
        unclear: what was not understood so far; takes more, and goes into `summary.json`.
        output: URI of the dataset.
        source: the format they come from.
        valid_share: of the posts for valid, drawn by their ids: the same in every import.
        overwrite: an earlier dataset at `output` is replaced.

    Raises:
        DataError: no post is there, or `output` holds something that may not be replaced.
        StorageError: `output` cannot be written.
    """
    if not posts:
        raise DataError("--input has no annotated posts; nothing is written")
    check_output(output, overwrite)
    parts = {
        "train": [post for post in posts if _draw(post.post_id) >= valid_share],
        "valid": [post for post in posts if _draw(post.post_id) < valid_share],
    }
    parts = {split: own for split, own in parts.items() if own}
    figures = {split: CorrectionFigures() for split in parts}
    summary = CorrectionSummary(source, figures, [], unclear.lines)
    streams = {split: _rows(own, store, unclear, figures[split]) for split, own in parts.items()}
    write_dataset(streams, summary, output)
    return summary


def _draw(post_id: str) -> float:
    """A number from [0, 1) that follows from the id."""
    return int.from_bytes(hashlib.sha256(post_id.encode()).digest()[:7], "big") / 2**56


def _rows(
    posts: Sequence[CorrectedPost], store: PictureStore, unclear: Unclear, figures: CorrectionFigures
) -> Iterator[Post]:
    for post in posts:
        rows = [row for one in post.pictures if (row := _with_picture(post, one, store, unclear, figures))]
        for row in rows or [Post(post.post_id, post.text, entities=post.entities)]:
            figures.posts += 1
            figures.entities += len(row.entities)
            figures.boxes += len(row.boxes)
            yield row


def _with_picture(
    post: CorrectedPost,
    one: CorrectedPicture,
    store: PictureStore,
    unclear: Unclear,
    figures: CorrectionFigures,
) -> Post | None:
    """The row of one picture, or None, with words of why, where it cannot be used."""
    picture = one.picture
    fetched = store.fetch(picture.uri)
    try:
        if fetched.data is None:
            figures.pictures_missing += 1
            raise ImageProblem("unreadable", fetched.error or "no picture")
        height, width = decode(fetched.data).shape[:2]
    except ImageProblem as problem:
        figures.pictures_unreadable += fetched.data is not None
        figures.picture_problems.append(f"{picture.uri}: {problem}")
        unclear.add(
            post.place, f"its picture {picture.uri} is left out with its {len(one.boxes)} box(es): {problem}"
        )
        return None
    if picture.width and picture.height and (picture.width, picture.height) != (width, height):
        figures.size_mismatch += 1
        unclear.add(
            post.place,
            f"its picture {picture.uri} has {width} x {height} pixels, but was annotated with {picture.width} x "
            f"{picture.height}; left out with its {len(one.boxes)} box(es)",
        )
        return None
    figures.pictures_found += 1
    boxes = tuple(box for drawn in one.boxes if (box := _box(drawn, (width, height), unclear, figures)))
    return Post(post.post_id, post.text, fetched.data, post.entities, boxes, boxes_annotated=True)


def _box(
    drawn: CorrectedBox, size: tuple[int, int], unclear: Unclear, figures: CorrectionFigures
) -> Box | None:
    x_min, y_min, x_max, y_max = drawn.xyxy
    if drawn.unit == "percent":
        (x_min, x_max), (y_min, y_max) = (
            (low * edge / 100, high * edge / 100)
            for low, high, edge in ((x_min, x_max, size[0]), (y_min, y_max, size[1]))
        )
    corners = (x_min, y_min, x_max, y_max)
    clipped = clip(corners, size)
    if clipped is None:
        unclear.add(drawn.place, f"box {fault(corners, size)}; left out")
        return None
    figures.boxes_clipped += any(abs(a - b) > _CLIPPED_PX for a, b in zip(corners, clipped, strict=True))
    return Box(drawn.type, *clipped)
