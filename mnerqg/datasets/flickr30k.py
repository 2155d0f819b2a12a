"""Import of Flickr30K Entities: captions with marked phrases, their boxes and pictures to training Parquet.

The release layout (Plummer et al. 2017), under one directory:

    train.txt val.txt test.txt      ids of pictures, one a line
    Sentences/<id>.txt              captions, one a line, in which `[/EN#<entity id>/<type> <words>]` is a phrase
                                    of one or several types; several phrases can name the same entity
    Annotations/<id>.xml            Pascal VOC: an object has the ids of one or several entities as `name`, and a
                                    `bndbox`, or `scene` 1, or `nobndbox` (also `nobox`) 1
    <any>images<any>/<id>.jpg       the pictures (.jpeg and .png are read too)

What comes out is `OUTPUT/<split>/part-00000.parquet` with `schema.TRAINING_SCHEMA`, a row a picture, and
`OUTPUT/summary.json`. `text` is the captions without their marks, a line each, and `phrases` what can be asked.

Choices: an entity's box is the one that encloses all its boxes (the usual protocol of phrase grounding; merged
ones are counted). Each distinct wording of an entity is a phrase of its own with a copy of the box: `<entity id>`,
`<entity id>#2`, … in the order of the captions. Wordings are compared as they stand. A phrase without a box (not
visual, a scene, no box drawn, or unknown to the XML) is left out and counted. A run of blanks is one space.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, get_args

from mnerqg.datasets import importing
from mnerqg.datasets.flickr30k_captions import Caption, Mention, is_entity_id, read_captions
from mnerqg.datasets.prepared import ROWS_PER_FILE
from mnerqg.datasets.refusals import DatasetSummary, Refusals, SplitFigures, refuse_line
from mnerqg.datasets.voc import Corners, VocFile, VocObject, clip, enclosing, fault, read_voc
from mnerqg.errors import DataError
from mnerqg.schema import Box, Phrase, Post

SPLIT_FILES = {"train": "train.txt", "valid": "val.txt", "test": "test.txt"}

Outcome = Literal["boxed", "not_visual", "scene", "no_box", "box_dropped", "unknown"]
OUTCOMES: tuple[Outcome, ...] = get_args(Outcome)


@dataclass
class SplitSummary(SplitFigures):
    """What the import of one split met; filled while its posts are read.

    `mentions` are the marked phrases of the captions by what became of them: those `boxed` become `phrases`,
    where the same words for the same entity are one; `box_dropped` had only boxes that were dropped. Boxes are
    the `bndbox` objects of the XML files, those of several entities once.
    """

    posts_without_phrases: int = 0  # nothing to train on
    captions: int = 0
    mentions: dict[Outcome, int] = field(default_factory=lambda: dict.fromkeys(OUTCOMES, 0))
    phrases: int = 0
    boxes: int = 0
    boxes_clipped: int = 0
    boxes_dropped: int = 0  # inverted or empty as annotated, or outside the picture
    entities_merged: int = 0  # entities of several boxes, whose box is the enclosing one
    boxes_merged: int = 0  # the boxes of those entities
    dropped_boxes: list[str] = field(default_factory=list)  # "file:line: what is wrong"
    unknown_entities: list[str] = field(default_factory=list)  # "file: entity id 'words'"


@dataclass(frozen=True, slots=True)
class EntityBox:
    """A box in pixels, as annotated (it may lie outside the picture), the entities it shows and its "file:line"."""

    entity_ids: tuple[str, ...]
    xyxy_px: Corners
    place: str


@dataclass(frozen=True, slots=True)
class Annotation:
    """What the XML of a picture says: its size as `VocFile` has it, its boxes, and the entities without one."""

    size: tuple[int, int] | None
    boxes: tuple[EntityBox, ...]
    scene: frozenset[str]
    no_box: frozenset[str]


@dataclass(frozen=True, slots=True)
class _Picture:
    image_id: str
    captions: list[Caption]
    annotation: Annotation


# ---- boxes ----------------------------------------------------------------------------------------------


def read_annotation(path: Path) -> Annotation:
    """The XML of a picture.

    Raises:
        DataError: what `read_voc` raises; naming file and line, for each object without the id of an entity,
            and for each that has no box and does not say why.
    """
    voc = read_voc(path)
    refusals = Refusals()
    scene: set[str] = set()
    no_box: set[str] = set()
    boxes = []
    for item in voc.objects:
        with refusals.collect():
            entity_ids = _entity_ids(voc, item)
            if item.xyxy_px is not None:
                boxes.append(EntityBox(entity_ids, item.xyxy_px, voc.place(item)))
            else:
                (scene if _is_scene(voc, item) else no_box).update(entity_ids)
    refusals.raise_collected()
    return Annotation(voc.size, tuple(boxes), frozenset(scene), frozenset(no_box))


def _is_scene(voc: VocFile, item: VocObject) -> bool:
    """Whether an object without a box is the whole scene; else no box was drawn. One of the two has to be said."""
    if _flag(voc, item, "scene"):
        return True
    if _flag(voc, item, "nobndbox") or _flag(voc, item, "nobox"):
        return False
    raise DataError(
        f"{voc.path}:{item.line}: object {item.number} ({', '.join(item.names)}) has no bndbox; "
        "write one, or <scene>1</scene>, or <nobndbox>1</nobndbox>"
    )


def _entity_ids(voc: VocFile, item: VocObject) -> tuple[str, ...]:
    for name in item.names or ("",):
        if not is_entity_id(name):
            raise DataError(
                f"{voc.path}:{item.line}: object {item.number} has the name {name!r}; write an entity's id"
            )
    return tuple(dict.fromkeys(item.names))


def _flag(voc: VocFile, item: VocObject, tag: str) -> bool:
    value = item.properties.get(tag, "0")
    if value not in ("0", "1"):
        raise DataError(f"{voc.path}:{item.line}: object {item.number} has {tag} {value!r}; write 0 or 1")
    return value == "1"


def entity_boxes(
    annotation: Annotation, size: tuple[int, int] | None, summary: SplitSummary
) -> dict[str, Corners]:
    """The box of each entity that has one within a picture of (width, height), in pixels, clipped to it.

    Of an entity with several boxes it is the one that encloses them.
    """
    boxes: dict[str, list[Corners]] = defaultdict(list)
    for box in annotation.boxes:
        summary.boxes += 1
        clipped = clip(box.xyxy_px, size)
        if clipped is None:
            summary.boxes_dropped += 1
            summary.dropped_boxes.append(f"{box.place}: {fault(box.xyxy_px, size)}")
            continue
        summary.boxes_clipped += clipped != box.xyxy_px
        for entity_id in box.entity_ids:
            boxes[entity_id].append(clipped)
    several = [len(found) for found in boxes.values() if len(found) > 1]
    summary.entities_merged += len(several)
    summary.boxes_merged += sum(several)
    return {entity_id: enclosing(found) for entity_id, found in boxes.items()}


# ---- phrases --------------------------------------------------------------------------------------------


def _outcome(mention: Mention, boxes: Mapping[str, Corners], annotation: Annotation) -> Outcome:
    if mention.not_visual:
        return "not_visual"
    if mention.entity_id in boxes:
        return "boxed"
    if any(mention.entity_id in box.entity_ids for box in annotation.boxes):
        return "box_dropped"
    if mention.entity_id in annotation.scene:
        return "scene"
    return "no_box" if mention.entity_id in annotation.no_box else "unknown"


def _boxed_mentions(
    picture: _Picture, boxes: Mapping[str, Corners], summary: SplitSummary
) -> Iterator[Mention]:
    """The mentions of a picture that have a box; counts all and names the entities that the XML lacks."""
    unknown: dict[str, str] = {}
    for mention in (mention for caption in picture.captions for mention in caption.mentions):
        outcome = _outcome(mention, boxes, picture.annotation)
        summary.mentions[outcome] += 1
        if outcome == "boxed":
            yield mention
        elif outcome == "unknown":
            unknown.setdefault(mention.entity_id, mention.words)
    summary.unknown_entities += [
        f"{picture.image_id}.xml: {entity_id} {words!r}" for entity_id, words in unknown.items()
    ]


def distinct_phrases(mentions: Iterable[Mention]) -> dict[Phrase, str]:
    """The phrases that mentions make, with the entity of each: one a wording of an entity, in order."""
    phrases: dict[tuple[str, str], Phrase] = {}
    wordings: Counter[str] = Counter()
    for mention in mentions:
        key = mention.entity_id, mention.words
        if key not in phrases:
            wordings[mention.entity_id] += 1
            count = wordings[mention.entity_id]
            phrase_id = mention.entity_id if count == 1 else f"{mention.entity_id}#{count}"
            phrases[key] = Phrase(phrase_id, mention.words)
    return {phrase: entity_id for (entity_id, _), phrase in phrases.items()}


# ---- splits ---------------------------------------------------------------------------------------------


def read_ids(path: Path, seen: dict[str, str]) -> list[tuple[int, str]]:
    """The ids of a split's file with their lines; `seen` is where ids stood before, and is added to.

    Raises:
        DataError: naming file and line, for each that is no id or stood before; for an empty file.
    """
    refusals = Refusals()
    ids = []
    for number, line in enumerate(importing.read_lines(path), start=1):
        image_id = line.strip()
        if image_id:
            with refusals.collect():
                _check_id(path, number, line, seen)
                seen[image_id] = f"{path.name}:{number}"
                ids.append((number, image_id))
    refusals.raise_collected()
    if not ids:
        raise DataError(f"{path}: holds no id of a picture; write one a line")
    return ids


def _check_id(path: Path, number: int, line: str, seen: Mapping[str, str]) -> None:
    image_id = line.strip()
    if not importing.is_picture_id(image_id):
        refuse_line(path, number, line, "is no picture's id; use letters, digits, '_', '-' and '.'")
    if image_id in seen:
        refuse_line(path, number, image_id, f"stands in {seen[image_id]} already; remove one of the two")


def _read_one(root: Path, listed: Path, number: int, image_id: str) -> _Picture:
    sentences = root / "Sentences" / f"{image_id}.txt"
    annotation = root / "Annotations" / f"{image_id}.xml"
    for path in (sentences, annotation):
        if not path.is_file():
            missing = path.relative_to(root)
            refuse_line(listed, number, image_id, f"has no {missing}; put the file there or remove the id")
    refusals = Refusals()
    with refusals.collect():
        captions = read_captions(sentences)
    with refusals.collect():
        boxes = read_annotation(annotation)
    refusals.raise_collected()
    return _Picture(image_id, captions, boxes)


def read_split(
    root: Path, split: str, summary: SplitSummary | None = None, seen: dict[str, str] | None = None
) -> Iterator[Post]:
    """The posts of a split, one a picture. Text and XML are read and checked at once, pictures one by one after.

    A missing or unreadable picture leaves `image` None and keeps the post. Boxes are in pixels of the upright
    picture, clipped to it; where there is no picture, to the size the XML states. A box's type is the id of its
    phrase. `summary` is complete when the posts are. `seen` is shared by the splits that have to be disjoint.

    Raises:
        DataError: what `read_ids` raises, or there is no directory of pictures; else all that `read_captions`
            and `read_annotation` raise, and each id that has no captions or no XML.
    """
    summary = SplitSummary() if summary is None else summary
    listed = root / SPLIT_FILES[split]
    ids = read_ids(listed, {} if seen is None else seen)
    paths = importing.index_pictures(root, "*images*")
    refusals = Refusals()
    pictures = []
    for number, image_id in ids:
        with refusals.collect():
            pictures.append(_read_one(root, listed, number, image_id))
    refusals.raise_collected()
    return (_post(picture, paths, summary) for picture in pictures)


def _post(picture: _Picture, paths: Mapping[str, Path], summary: SplitSummary) -> Post:
    image = importing.read_picture(paths, picture.image_id, summary)
    stated = picture.annotation.size
    size = image[1] if image is not None else stated
    boxes = entity_boxes(picture.annotation, size, summary)
    phrases = distinct_phrases(_boxed_mentions(picture, boxes, summary))
    summary.posts += 1
    summary.posts_without_phrases += not phrases
    summary.captions += len(picture.captions)
    summary.phrases += len(phrases)
    summary.size_mismatch += stated is not None and stated != size
    return Post(
        post_id=picture.image_id,
        text="\n".join(caption.text for caption in picture.captions),
        image=image[0] if image is not None else None,
        boxes=tuple(Box(phrase.id, *boxes[entity_id]) for phrase, entity_id in phrases.items()),
        boxes_annotated=bool(phrases),  # without any, the model's own queries would be answered by nothing
        phrases=tuple(phrases),
    )


def import_dataset(
    root: Path,
    output: str,
    splits: Sequence[str] | None = None,
    overwrite: bool = False,
    rows_per_file: int = ROWS_PER_FILE,
) -> DatasetSummary[SplitSummary]:
    """Import a release from `root` to `output`, all or nothing, and store the summary beside the splits.

    All text and XML is checked before anything is written; no picture may stand in two of the splits.

    Raises:
        DataError: the release is not as it should be (the first fault is told, and where others are), or
            `output` holds something that may not be replaced.
        StorageError: `output` cannot be written.
    """
    chosen, absent = importing.choose_splits(root, SPLIT_FILES, splits)
    importing.check_output(output, overwrite)
    summary = DatasetSummary("flickr30k", {split: SplitSummary() for split in chosen}, absent)
    seen: dict[str, str] = {}
    refusals = Refusals()
    streams = {}
    for split in chosen:
        with refusals.collect():
            streams[split] = read_split(root, split, summary.splits[split], seen)
    refusals.raise_collected()
    importing.write_dataset(streams, summary, output, rows_per_file)
    return summary
