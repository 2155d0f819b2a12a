"""A post of the gallery as the page gets it: plain JSON values, everything of bounded length."""

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from mnerqg.archive.counts import reasons_of
from mnerqg.report.thumbnails import Thumbnail
from mnerqg.schema import TRAINING_SCHEMA, tags_schema

if TYPE_CHECKING:
    from mnerqg.report.gold import Judgement
    from mnerqg.schema import Post

_TEXT_CHARACTERS = 5_000
_VALUE_CHARACTERS = 300
_SHOWN_VALUES = 12
_KNOWN = {*tags_schema(several_pictures=True).names, "text", *TRAINING_SCHEMA.names}
_STATUS_WORDS = {
    "none": "the post has no picture",
    "missing": "the picture was not there when the post was tagged",
    "forbidden": "the picture was not allowed to be read when the post was tagged",
    "unreadable": "the file is no picture that can be read",
    "too_large": "the picture is larger than tagging allows",
}


def describe_post(
    row: Mapping[str, Any], text: str | None, thumbnails: Sequence[Thumbnail] | None
) -> dict[str, Any]:
    """A row of tags with its text and pictures.

    Args:
        row: with all columns of the tags.
        text: of the archive; None where it is not known, or the post has none.
        thumbnails: of its pictures, None where the archive is not at hand.
    """
    text = row.get("text") if text is None else text
    more = [[name, _short(value)] for name, value in row.items() if name not in _KNOWN and value is not None]
    return {
        "hash": str(row["row_hash"]),
        "id": _short(row["post_id"]) if row["post_id"] is not None else None,
        "text": text[:_TEXT_CHARACTERS] if text is not None else None,
        "cut": max(0, len(text) - _TEXT_CHARACTERS) if text is not None else 0,
        "textStatus": row["text_status"],
        "pictures": _pictures(row, thumbnails),
        "entities": [
            {
                "text": _short(one["text"]),
                "start": one["start"],
                "end": one["end"],
                "type": one["type"],
                "score": _score(one["score"]),
                "region": one["region"],
            }
            for one in row["entities"] or ()
        ],
        "regions": [
            {
                "type": one["type"],
                "box": [_score(one[side], 1) for side in ("x_min", "y_min", "x_max", "y_max")],
                "score": _score(one["score"]),
                "picture": one["image_index"] or 0,
            }
            for one in row["regions"] or ()
        ],
        "existence": [[one["type"], _score(one["score"])] for one in row.get("existence") or ()],
        "error": _short(row["error"]) if row["error"] is not None else None,
        "reasons": reasons_of(row["error"]) if row["error"] is not None else [],
        "retryable": bool(row["retryable"]),
        "more": more[:_SHOWN_VALUES],
    }


def describe_gold(post: "Post", judgement: "Judgement") -> dict[str, Any]:
    """The annotations of a post, and how what was predicted compares with them."""
    from mnerqg.report.gold import gold_boxes

    return {
        "verdicts": judgement.entities,
        "missed": [
            {
                "start": post.entities[place].start,
                "end": post.entities[place].end,
                "type": post.entities[place].type,
                "text": _short((post.text or "")[post.entities[place].start : post.entities[place].end]),
            }
            for place in judgement.missed
        ],
        "boxes": [
            {
                "type": box.type,
                "box": [_score(corner, 1) for corner in box.xyxy_px],
                "missed": place in judgement.missed_boxes,
            }
            for place, box in enumerate(gold_boxes(post))
        ],
        "looked": post.boxes_annotated,
        "ious": [None if iou is None else _score(iou) for iou in judgement.ious],
        "labels": sorted(judgement.labels),
        "faults": judgement.faults,
    }


def _pictures(row: Mapping[str, Any], thumbnails: Sequence[Thumbnail] | None) -> list[dict[str, Any]]:
    """Each picture of the post: its thumbnail, or why there is none."""
    sizes = {"width": row["image_width"], "height": row["image_height"]}
    own = row.get("images")
    if own is None:
        own = [{"status": row["image_status"], **sizes, "error": row["error"]}]
    described = []
    for place, picture in enumerate(own):
        thumbnail = thumbnails[place] if thumbnails is not None and place < len(thumbnails) else None
        why = _why_not(picture, thumbnail)
        described.append(
            {
                "status": picture["status"],
                "width": picture["width"],
                "height": picture["height"],
                "uri": thumbnail.uri if thumbnail is not None and why is None else None,
                "why": why,
                "error": _short(picture["error"]) if picture["status"] != "ok" and picture["error"] else None,
            }
        )
    return described


def _why_not(picture: Mapping[str, Any], thumbnail: Thumbnail | None) -> str | None:
    """Why a picture cannot be shown, None where it can."""
    if picture["status"] != "ok":
        return _STATUS_WORDS.get(picture["status"], str(picture["status"]))
    if thumbnail is None:
        return "the archive with the picture is not at hand"
    if thumbnail.uri is None:
        return f"the picture was read when the post was tagged, but not for this page ({thumbnail.problem})"
    if (thumbnail.width, thumbnail.height) != (picture["width"], picture["height"]):
        return (
            f"another picture is there now, of {thumbnail.width} × {thumbnail.height} pixels; the boxes are of one of "
            f"{picture['width']} × {picture['height']}"
        )
    return None


def _score(value: Any, digits: int = 4) -> float | None:
    """Rounded, for a page of thousands of them; None for what is no number, which JSON cannot hold."""
    return round(float(value), digits) if value is not None and math.isfinite(value) else None


def _short(value: Any) -> str:
    words = str(value)
    return words if len(words) <= _VALUE_CHARACTERS else f"{words[:_VALUE_CHARACTERS]}…"
