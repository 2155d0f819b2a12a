"""Import of the public Twitter datasets: CoNLL text, Pascal VOC boxes and pictures to training Parquet.

The release layout, under one directory:

    train.txt valid.txt test.txt    `IMGID:<id>`, then `token<TAB>tag` lines, a blank line between posts
    <any>_images/<id>.jpg           the pictures (.jpeg and .png are read too)
    xml/<id>.xml                    boxes: `object/name` is an entity's surface (GMNER)

What comes out is `OUTPUT/<split>/part-00000.parquet` with `schema.TRAINING_SCHEMA` and `OUTPUT/summary.json`.

Choices: a stray `I-` begins an entity; MISC is OTHER; tokens are joined by one space, also where a token is
itself a blank such as U+00A0. Several posts can share a picture: the first keeps its id as `post_id`, the
next are `<id>#2`, `<id>#3`. A box is joined to an entity by letters and digits, case folded.
"""

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mnerqg.datasets import importing
from mnerqg.datasets.prepared import ROWS_PER_FILE
from mnerqg.datasets.refusals import DatasetSummary, SplitFigures, refuse_line
from mnerqg.datasets.voc import Corners, VocFile, clip, fault, read_voc
from mnerqg.errors import DataError
from mnerqg.schema import Box, Post, Span

TYPES = ("PER", "LOC", "ORG", "OTHER")
SPLIT_FILES = {"train": "train.txt", "valid": "valid.txt", "test": "test.txt"}

_TAGS = {f"{prefix}-{name}": (prefix, name) for prefix in "BI" for name in TYPES}
_TAGS |= {"B-MISC": ("B", "OTHER"), "I-MISC": ("I", "OTHER")}


@dataclass
class SplitSummary(SplitFigures):
    """What the import of one split met; filled while its posts are read.

    Objects are the boxes of the XML files: each is joined (kept), dropped (inverted or empty as annotated, or
    outside its picture) or unmatched (its name is no entity of its post). `boxes_ambiguous` and `boxes_clipped`
    are among the joined and dropped ones.
    """

    entities: dict[str, int] = field(default_factory=lambda: dict.fromkeys(TYPES, 0))
    stray_i: int = 0  # I- with no entity open before it: begins one
    type_changing_i: int = 0  # I- after an entity of another type: begins one
    shared_pictures: int = 0  # posts whose picture an earlier post has already shown
    posts_annotated: int = 0
    boxes: dict[str, int] = field(default_factory=lambda: dict.fromkeys(TYPES, 0))
    boxes_joined: int = 0
    boxes_unmatched: int = 0
    boxes_ambiguous: int = 0  # the name is that of entities of several types: the first in the text is taken
    boxes_clipped: int = 0
    boxes_dropped: int = 0
    objects_without_box: int = 0
    unmatched_names: list[str] = field(default_factory=list)  # "file:line: name"
    dropped_boxes: list[str] = field(default_factory=list)  # "file:line: what is wrong", each box once


@dataclass
class ReleaseSummary(DatasetSummary[SplitSummary]):
    """The summary of an import, with the XML files of no post of the splits, which nothing else reads.

    Their number is None where a split of the release was left out: they may be its posts'.
    """

    xml_without_post: int | None = None
    xml_without_post_names: list[str] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """The content of `summary.json`."""
        return super().to_dict() | {
            "xml_without_post": self.xml_without_post,
            "xml_without_post_names": self.xml_without_post_names,
        }


@dataclass(frozen=True, slots=True)
class TextPost:
    """A post as the CoNLL file gives it. Entities are code points of `text`."""

    post_id: str
    image_id: str
    text: str
    entities: tuple[Span, ...]


# ---- text -----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Block:
    line: int
    image_id: str
    words: list[tuple[str, str]]


def parse_conll(path: Path, summary: SplitSummary | None = None) -> list[TextPost]:
    """The posts of a CoNLL file, in order; counts posts, entities, stray I- and shared pictures.

    Raises:
        DataError: naming file and line, for a missing or empty file, text that is not UTF-8, a line that is
            not `token<TAB>tag`, an unknown tag, tokens before an IMGID, or an IMGID without tokens.
    """
    summary = SplitSummary() if summary is None else summary
    seen: Counter[str] = Counter()
    posts = []
    for block in _blocks(path):
        seen[block.image_id] += 1
        count = seen[block.image_id]
        summary.shared_pictures += count > 1
        posts.append(
            TextPost(
                post_id=block.image_id if count == 1 else f"{block.image_id}#{count}",
                image_id=block.image_id,
                text=" ".join(token for token, _ in block.words),
                entities=tuple(_entities(block.words, summary)),
            )
        )
    if not posts:
        raise DataError(
            f"{path}: holds no post; a split is IMGID lines, each followed by token<TAB>tag lines"
        )
    summary.posts += len(posts)
    return posts


def _blocks(path: Path) -> Iterator[_Block]:
    block: _Block | None = None
    for number, line in enumerate(importing.read_lines(path), start=1):
        if line.startswith("IMGID:") and "\t" not in line:
            if block is not None:
                yield _with_words(path, block)
            block = _Block(number, _image_id(path, number, line), [])
        elif line.strip(" "):
            word = _word(path, number, line)
            if block is None:
                refuse_line(path, number, line, "stands before any IMGID; begin the post with IMGID:<id>")
            block.words.append(word)
        elif block is not None and block.words:
            yield block
            block = None
    if block is not None:
        yield _with_words(path, block)


def _with_words(path: Path, block: _Block) -> _Block:
    if not block.words:
        raise DataError(
            f"{path}:{block.line}: IMGID:{block.image_id} has no tokens; add them or remove the line"
        )
    return block


def _image_id(path: Path, number: int, line: str) -> str:
    image_id = line.removeprefix("IMGID:").strip()
    if not importing.is_picture_id(image_id):
        refuse_line(path, number, line, "is no picture's id; use letters, digits, '_', '-' and '.'")
    return image_id


def _word(path: Path, number: int, line: str) -> tuple[str, str]:
    # No strip(): U+00A0 or U+FE0F alone is a token of the datasets.
    token, tab, tag = line.partition("\t")
    tag = tag.strip(" ")
    if not tab or "\t" in tag:
        refuse_line(path, number, line, "is not token<TAB>tag; write one token, one tab and its tag")
    if not token:
        refuse_line(path, number, line, "has an empty token; write the token or remove the line")
    if tag != "O" and tag not in _TAGS:
        raise DataError(
            f"{path}:{number}: unknown tag {tag!r}; use O, or B- or I- with PER, LOC, ORG, OTHER or MISC"
        )
    return token, tag


def _entities(words: Sequence[tuple[str, str]], summary: SplitSummary) -> list[Span]:
    spans: list[Span] = []
    open_type: str | None = None
    start = 0
    for token, tag in words:
        end = start + len(token)
        prefix, entity_type = _TAGS.get(tag, ("O", None))
        if entity_type is not None:
            if prefix == "I" and entity_type == open_type:
                spans[-1] = Span(spans[-1].start, end, entity_type)
            else:
                summary.stray_i += prefix == "I" and open_type is None
                summary.type_changing_i += prefix == "I" and open_type is not None
                summary.entities[entity_type] += 1
                spans.append(Span(start, end, entity_type))
        open_type = entity_type
        start = end + 1
    return spans


# ---- boxes ----------------------------------------------------------------------------------------------


def match_key(name: str) -> str:
    """What a box's name and an entity's surface are compared by: letters and digits, case folded."""
    return "".join(character for character in name.casefold() if character.isalnum())


def _types_by_key(post: TextPost) -> dict[str, list[str]]:
    """The types of the entities of a post by `match_key`, in the order of the text."""
    types: dict[str, list[str]] = defaultdict(list)
    for span in post.entities:
        key = match_key(post.text[span.start : span.end])
        if key and span.type not in types[key]:
            types[key].append(span.type)
    return types


def _named_boxes(voc: VocFile) -> Iterator[tuple[str, str, Corners]]:
    """The boxes of a file with their "file:line", once for each name they bear, which comes first."""
    for item in voc.objects:
        if item.xyxy_px is not None:
            for name in item.names or ("",):
                yield name, voc.place(item), item.xyxy_px


def _join(
    post: TextPost, voc: VocFile, size: tuple[int, int] | None, known: set[str], summary: SplitSummary
) -> Iterator[Box]:
    """The boxes of a post, each with the type of the entity that bears its name.

    `known` are the keys that need no report here: the entities of other posts that show the same picture.
    """
    types_by_key = _types_by_key(post)
    for name, place, xyxy_px in _named_boxes(voc):
        key = match_key(name)
        if key not in types_by_key:
            if key not in known:
                summary.boxes_unmatched += 1
                summary.unmatched_names.append(f"{place}: {name}")
            continue
        summary.boxes_ambiguous += len(types_by_key[key]) > 1
        clipped = clip(xyxy_px, size)
        if clipped is None:
            summary.boxes_dropped += 1
            dropped = f"{place}: {fault(xyxy_px, size)}"
            if dropped not in summary.dropped_boxes:  # several names, or posts that share the picture
                summary.dropped_boxes.append(dropped)
            continue
        summary.boxes_clipped += clipped != xyxy_px
        summary.boxes_joined += 1
        box = Box(types_by_key[key][0], *clipped)
        summary.boxes[box.type] += 1
        yield box


# ---- pictures and posts ---------------------------------------------------------------------------------


def read_split(
    root: Path, split: str, summary: SplitSummary | None = None, seen: set[str] | None = None
) -> Iterator[Post]:
    """The posts of a split. Its text and XML are read and checked at once, its pictures one by one after.

    A missing or unreadable picture leaves `image` None and keeps the post. `boxes_annotated` is whether the
    picture has an XML. Boxes are in pixels of the upright picture, clipped to it; where there is no picture,
    to the size the XML states. `summary` is complete when the posts are. The ids of the split's pictures are
    added to `seen`.

    Raises:
        DataError: what `parse_conll` and `read_voc` raise, or there is no directory of pictures.
    """
    summary = SplitSummary() if summary is None else summary
    posts = parse_conll(root / SPLIT_FILES[split], summary)
    pictures = importing.index_pictures(root, "*_images")
    paths = {post.image_id: root / "xml" / f"{post.image_id}.xml" for post in posts}
    if seen is not None:
        seen.update(paths)
    vocs = {image_id: read_voc(path) for image_id, path in paths.items() if path.is_file()}
    return _stream(posts, pictures, vocs, summary)


def _stream(
    posts: list[TextPost], pictures: dict[str, Path], vocs: dict[str, VocFile], summary: SplitSummary
) -> Iterator[Post]:
    keys: dict[str, set[str]] = defaultdict(set)
    for post in posts:
        keys[post.image_id].update(_types_by_key(post))
    for post in posts:
        picture = importing.read_picture(pictures, post.image_id, summary)
        boxes: tuple[Box, ...] = ()
        voc = vocs.get(post.image_id)
        if voc is not None:
            size = picture[1] if picture is not None else voc.size
            summary.posts_annotated += 1
            of_new_picture = "#" not in post.post_id  # what concerns the picture alone is counted once
            summary.size_mismatch += of_new_picture and voc.size is not None and voc.size != size
            if of_new_picture:
                summary.objects_without_box += sum(item.xyxy_px is None for item in voc.objects)
            known = (
                keys[post.image_id] if of_new_picture else {match_key(name) for name, *_ in _named_boxes(voc)}
            )
            boxes = tuple(_join(post, voc, size, known, summary))
        yield Post(
            post_id=post.post_id,
            text=post.text,
            image=picture[0] if picture is not None else None,
            entities=post.entities,
            boxes=boxes,
            boxes_annotated=voc is not None,
        )


def _xml_without_post(root: Path, image_ids: set[str]) -> list[str]:
    """The names of the XML files that belong to none of the pictures; they are not opened."""
    read = {f"{image_id}.xml" for image_id in image_ids}
    files = (root / "xml").glob("*")
    return sorted(path.name for path in files if path.suffix.lower() == ".xml" and path.name not in read)


def import_dataset(
    root: Path,
    output: str,
    splits: Sequence[str] | None = None,
    overwrite: bool = False,
    rows_per_file: int = ROWS_PER_FILE,
) -> ReleaseSummary:
    """Import a release from `root` to `output`, all or nothing, and store the summary beside the splits.

    All text and XML of the splits is checked before anything is written.

    Raises:
        DataError: the release is not as it should be, or `output` holds something that may not be replaced.
        StorageError: `output` cannot be written.
    """
    chosen, absent = importing.choose_splits(root, SPLIT_FILES, splits)
    importing.check_output(output, overwrite)
    summary = ReleaseSummary("twitter", {split: SplitSummary() for split in chosen}, absent)
    seen: set[str] = set()
    streams = {split: read_split(root, split, summary.splits[split], seen) for split in chosen}
    if len(chosen) + len(absent) == len(SPLIT_FILES):
        summary.xml_without_post_names = _xml_without_post(root, seen)
        summary.xml_without_post = len(summary.xml_without_post_names)
    importing.write_dataset(streams, summary, output, rows_per_file)
    return summary
