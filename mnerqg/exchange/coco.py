"""COCO: tags as one object of pictures and boxes, and back.

COCO knows no texts. They lie beside, under `posts`, with entities in code points and the ids of their pictures; tools
for boxes drop them, and then the file that was exported gives them again (`read_document(..., exported=...)`).
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from mnerqg.errors import DataError
from mnerqg.exchange.posts import CorrectedBox, CorrectedPicture, CorrectedPost, Picture, TaggedText, Unclear
from mnerqg.schema import Span


def to_document(posts: Sequence[TaggedText], types: Sequence[str]) -> dict[str, Any]:
    """All posts as one document; ids count from 1."""
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    texts: list[dict[str, Any]] = []
    for post in posts:
        first = len(images) + 1
        images += [
            {"id": first + place, "file_name": picture.uri, "width": picture.width, "height": picture.height}
            for place, picture in enumerate(post.pictures)
        ]
        for region in post.regions:
            width, height = region.x_max - region.x_min, region.y_max - region.y_min
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": first + region.image_index,
                    "category_id": types.index(region.type) + 1,
                    "bbox": [region.x_min, region.y_min, width, height],
                    "area": width * height,
                    "iscrowd": 0,
                    "score": region.score,
                }
            )
        texts.append(
            {
                "post_id": post.post_id,
                "text": post.text,
                "image_ids": list(range(first, len(images) + 1)),
                "entities": [
                    {
                        "start": one.start,
                        "end": one.end,
                        "type": one.type,
                        "text": one.text,
                        "score": one.score,
                    }
                    for one in post.entities
                ],
            }
        )
    return {
        "info": {"description": "tags of MNER-QG", "model_ids": sorted({post.model_id for post in posts})},
        "images": images,
        "annotations": annotations,
        "categories": [{"id": number, "name": kind} for number, kind in enumerate(types, start=1)],
        "posts": texts,
    }


def read_document(text: str, exported: str | None, unclear: Unclear) -> Iterator[CorrectedPost]:
    """The posts of a corrected document.

    Args:
        text: of the file.
        exported: that of the file as `to_document` made it, whose posts are taken where the other one has none; its
            pictures are then found by their `file_name`.
        unclear: takes what is not understood.

    Raises:
        DataError: a file is no COCO, or nothing says what the posts are.
    """
    document = _parsed(text, "--input")
    boxes = _boxes(document, unclear)
    by_id = {image["id"]: image for image in document["images"]}
    source = document
    if not document.get("posts"):
        if exported is None:
            raise DataError(
                "--input has no posts (COCO knows no texts, and the tool dropped them); give the file that was "
                "exported with --exported F"
            )
        source = _parsed(exported, "--exported")
        by_name = {image["file_name"]: image for image in document["images"]}
        # The tool may have numbered the pictures anew. Where it has not, two posts may have the same picture.
        there = by_id
        by_id = {
            image["id"]: own
            if (own := there.get(image["id"])) and own["file_name"] == image["file_name"]
            else by_name[image["file_name"]]
            for image in source["images"]
            if image["file_name"] in by_name
        }
    used = set()
    for number, post in enumerate(source.get("posts") or [], start=1):
        place = f"post number {number}"
        try:
            place = f"post {post.get('post_id', f'number {number}')}"
            images = [by_id[key] for key in post["image_ids"] if key in by_id]
            missing = [key for key in post["image_ids"] if key not in by_id]
            pictures = tuple(
                CorrectedPicture(
                    Picture(image["file_name"], image.get("width"), image.get("height")),
                    tuple(boxes.get(image["id"], ())),
                )
                for image in images
            )
            corrected = CorrectedPost(
                place, str(post["post_id"]), post["text"] or "", _entities(post), pictures
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            unclear.add(place, f"is not laid out as it was exported ({type(error).__name__}: {error})")
            continue
        if missing:
            unclear.add(place, f"has pictures that are not there any more (ids {missing}); they are left out")
        used |= {image["id"] for image in images}
        yield corrected
    for image in document["images"]:
        if image["id"] not in used:
            unclear.add(f"picture {image['file_name']}", "belongs to no post; left out")


def _parsed(text: str, option: str) -> dict[str, Any]:
    try:
        document = json.loads(text)
    except ValueError as error:
        raise DataError(f"{option} is no JSON ({error}); give a COCO file") from None
    names = ("images", "annotations", "categories")
    if not isinstance(document, dict) or not all(isinstance(document.get(name), list) for name in names):
        raise DataError(f"{option} has no lists {', '.join(names)}; give a COCO file of boxes")
    for image in document["images"]:
        if not isinstance(image, dict) or not {"id", "file_name"} <= image.keys():
            raise DataError(
                f"{option} has a picture without id or file_name: {str(image)[:80]}; give a COCO file"
            )
    return document


def _boxes(document: Mapping[str, Any], unclear: Unclear) -> dict[Any, list[CorrectedBox]]:
    """The boxes by the id of their picture."""
    categories = {one.get("id"): one.get("name") for one in document["categories"]}
    images = {image["id"] for image in document["images"]}
    found: dict[Any, list[CorrectedBox]] = {}
    for number, annotation in enumerate(document["annotations"], start=1):
        place = f"annotation number {number}"
        try:
            place = f"annotation {annotation.get('id')}"
            kind, image = categories.get(annotation.get("category_id")), annotation.get("image_id")
            if kind is None or image not in images:
                unclear.add(place, "names a category or picture that is not there; left out")
            elif annotation.get("iscrowd") or len(annotation.get("bbox") or ()) != 4:
                unclear.add(place, "is no box of one thing (bbox missing, or iscrowd); left out")
            else:
                x, y, width, height = map(float, annotation["bbox"])
                box = CorrectedBox(place, kind, (x, y, x + width, y + height), "px")
                found.setdefault(image, []).append(box)
        except (TypeError, ValueError, AttributeError) as error:
            unclear.add(place, f"is not laid out as in COCO ({type(error).__name__}: {error}); left out")
    return found


def _entities(post: Mapping[str, Any]) -> tuple[Span, ...]:
    spans = [Span(int(one["start"]), int(one["end"]), str(one["type"])) for one in post["entities"]]
    for span in spans:
        if not 0 <= span.start < span.end <= len(post["text"] or ""):
            raise ValueError(f"[{span.start}:{span.end}] is no part of the text")
    return tuple(sorted(dict.fromkeys(spans), key=lambda span: (span.start, span.end, span.type)))
