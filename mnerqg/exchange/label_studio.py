"""Label Studio: tags as its tasks with predictions, and annotated tasks, its JSON export, as corrected posts.

A task has the text under `text` and the URIs of the pictures under `pictures`. Boxes are percent of the picture's
edges. Offsets are written in UTF-16 units, in which Label Studio's editor cuts the text; the annotations that it
exports count them in some versions and code points in others, which `offsets.read_span` tells apart by the words that
stand beside them. See https://labelstud.io/guide/task_format.
"""

import json
from collections.abc import Iterator, Sequence
from typing import Any
from xml.etree.ElementTree import Element, SubElement, indent, tostring

from mnerqg.errors import DataError
from mnerqg.exchange.offsets import Unit, read_span, to_utf16
from mnerqg.exchange.posts import CorrectedBox, CorrectedPicture, CorrectedPost, Picture, TaggedText, Unclear
from mnerqg.schema import Region, Span

_PICTURE_KEYS = ("pictures", "images", "image")


# ---- out ------------------------------------------------------------------------------------------------


def labelling_config(types: Sequence[str]) -> str:
    """The XML of a project in which the tasks of `to_task` can be annotated."""
    view = Element("View")
    for tag, name, value in (("Labels", "entity", "text"), ("RectangleLabels", "region", "picture")):
        labels = SubElement(view, tag, name=name, toName=value)
        for kind in types:
            SubElement(labels, "Label", value=kind)
    view.insert(1, Element("Text", name="text", value="$text"))
    SubElement(view, "Image", name="picture", valueList="$pictures")
    indent(view)
    return tostring(view, encoding="unicode") + "\n"


def to_task(post: TaggedText) -> dict[str, Any]:
    """A task whose one prediction is what the model found."""
    entities = [
        {
            "id": f"entity-{number}",
            "from_name": "entity",
            "to_name": "text",
            "type": "labels",
            "score": entity.score,
            "value": {
                "start": to_utf16(post.text, entity.start),
                "end": to_utf16(post.text, entity.end),
                "text": entity.text,
                "labels": [entity.type],
            },
        }
        for number, entity in enumerate(post.entities)
    ]
    regions = [
        _region(number, region, post.pictures[region.image_index])
        for number, region in enumerate(post.regions)
    ]
    return {
        "data": {
            "post_id": post.post_id,
            "text": post.text,
            "pictures": [picture.uri for picture in post.pictures],
        },
        "predictions": [{"model_version": post.model_id, "result": [*entities, *regions]}],
    }


def _region(number: int, region: Region, picture: Picture) -> dict[str, Any]:
    width, height = picture.width or 1, picture.height or 1
    return {
        "id": f"region-{number}",
        "from_name": "region",
        "to_name": "picture",
        "type": "rectanglelabels",
        "score": region.score,
        "item_index": region.image_index,
        "original_width": width,
        "original_height": height,
        "image_rotation": 0,
        "value": {
            "x": 100 * region.x_min / width,
            "y": 100 * region.y_min / height,
            "width": 100 * (region.x_max - region.x_min) / width,
            "height": 100 * (region.y_max - region.y_min) / height,
            "rotation": 0,
            "rectanglelabels": [region.type],
        },
    }


# ---- back -----------------------------------------------------------------------------------------------


def read_tasks(text: str, unit: Unit | None, unclear: Unclear) -> Iterator[CorrectedPost]:
    """The annotated tasks of a JSON export; those that nobody annotated are passed over.

    Args:
        text: of the file.
        unit: of offsets; None: see `read_span`.
        unclear: takes what is not understood.

    Raises:
        DataError: the file is no JSON export of Label Studio.
    """
    try:
        tasks = json.loads(text)
    except ValueError as error:
        raise DataError(f"--input is no JSON ({error}); export from Label Studio as JSON") from None
    tasks = [tasks] if isinstance(tasks, dict) else tasks
    if not isinstance(tasks, list) or not all(isinstance(task, dict) and "data" in task for task in tasks):
        raise DataError(
            "--input is no list of tasks with data; export from Label Studio as JSON, not as JSON-MIN"
        )
    for number, task in enumerate(tasks, start=1):
        place = f"task {task.get('id', f'number {number}')}"
        try:
            post = _read_task(task, place, unit, unclear)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            unclear.add(
                place, f"is not laid out as Label Studio's tasks are ({type(error).__name__}: {error})"
            )
            continue
        if post is not None:
            yield post


def _read_task(task: dict[str, Any], place: str, unit: Unit | None, unclear: Unclear) -> CorrectedPost | None:
    annotation = _annotation(task, place, unclear)
    if annotation is None:
        return None
    data = task["data"]
    text = data.get("text") or ""
    pictures = _pictures(data)
    entities: list[Span] = []
    boxes: list[list[CorrectedBox]] = [[] for _ in pictures]
    for result in annotation["result"]:
        here = f"{place}, result {result.get('id')}"
        if result["type"] == "labels":
            entities += _read_labels(result, text, unit, here, unclear)
        elif result["type"] == "rectanglelabels":
            index = _read_index(result, len(pictures), here, unclear)
            if index is not None:
                boxes[index] += _read_rectangle(result, here, unclear)
                pictures[index] = _with_size(pictures[index], result)
        else:
            unclear.add(here, f"is of the type {result['type']!r}, not labels or rectanglelabels; left out")
    return CorrectedPost(
        place=place,
        post_id=str(data.get("post_id", task.get("id", ""))),
        text=text,
        entities=tuple(sorted(dict.fromkeys(entities), key=lambda span: (span.start, span.end, span.type))),
        pictures=tuple(
            CorrectedPicture(picture, tuple(own)) for picture, own in zip(pictures, boxes, strict=True)
        ),
    )


def _annotation(task: dict[str, Any], place: str, unclear: Unclear) -> dict[str, Any] | None:
    """The one annotation to take: the only one that was not cancelled, or the only ground truth among them."""
    found = [one for one in task.get("annotations") or [] if not one.get("was_cancelled")]
    if len(found) > 1:
        truths = [one for one in found if one.get("ground_truth")]
        if len(truths) != 1:
            unclear.add(
                place, f"has {len(found)} annotations; mark one of them as ground truth, or delete the others"
            )
            return None
        found = truths
    return found[0] if found else None


def _pictures(data: dict[str, Any]) -> list[Picture]:
    value: Any = next((data[key] for key in _PICTURE_KEYS if data.get(key)), [])
    return [Picture(str(uri)) for uri in ([value] if isinstance(value, str) else value)]


def _read_labels(
    result: dict[str, Any], text: str, unit: Unit | None, here: str, unclear: Unclear
) -> Iterator[Span]:
    value = result["value"]
    for kind in value["labels"]:
        span = read_span(text, value["start"], value["end"], kind, recorded=value.get("text"), unit=unit)
        if isinstance(span, Span):
            yield span
        else:
            unclear.add(here, f"{kind} {span}; left out")


def _read_index(result: dict[str, Any], pictures: int, here: str, unclear: Unclear) -> int | None:
    index = result.get("item_index", 0 if pictures == 1 else None)
    if index is None or not 0 <= index < pictures:
        unclear.add(
            here, f"does not say in which of the {pictures} pictures it lies (item_index {index}); left out"
        )
        return None
    return int(index)


def _read_rectangle(result: dict[str, Any], here: str, unclear: Unclear) -> Iterator[CorrectedBox]:
    value = result["value"]
    if value.get("rotation") or result.get("image_rotation"):
        unclear.add(here, "is rotated, and boxes here are upright; left out")
        return
    x, y, width, height = (float(value[side]) for side in ("x", "y", "width", "height"))
    for kind in value["rectanglelabels"]:
        yield CorrectedBox(here, kind, (x, y, x + width, y + height), "percent")


def _with_size(picture: Picture, result: dict[str, Any]) -> Picture:
    width, height = result.get("original_width"), result.get("original_height")
    return Picture(picture.uri, width, height) if width and height else picture
