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

import json
import math
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any
from xml.etree.ElementTree import Element, ParseError

import defusedxml.ElementTree as SafeTree
import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq
from defusedxml import DefusedXmlException

from mnerqg import storage
from mnerqg.data import images
from mnerqg.errors import DataError, StorageError
from mnerqg.schema import TRAINING_SCHEMA, Box, Post, Span

SPLITS = ("train", "valid", "test")
TYPES = ("PER", "LOC", "ORG", "OTHER")
ROWS_PER_FILE = 1000
ROWS_PER_GROUP = 100
SUMMARY_FILE = "summary.json"
DATASET_FORMAT = "mnerqg-dataset"

# Stands in the output while an import runs: an object store cannot rename a finished directory into place.
_UNFINISHED = "_unfinished"

_TAGS = {f"{prefix}-{name}": (prefix, name) for prefix in "BI" for name in TYPES}
_TAGS |= {"B-MISC": ("B", "OTHER"), "I-MISC": ("I", "OTHER")}
_IMAGE_ID = re.compile(r"\w[\w.-]*")
_IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png")
_CORNERS = ("xmin", "ymin", "xmax", "ymax")


@dataclass
class SplitSummary:
    """What the import of one split met; filled while its posts are read.

    Objects are the boxes of the XML files: each is joined (kept), dropped (outside its picture or empty) or
    unmatched (its name is no entity of its post). `boxes_ambiguous` and `boxes_clipped` are among the joined
    and dropped ones.
    """

    posts: int = 0
    entities: dict[str, int] = field(default_factory=lambda: dict.fromkeys(TYPES, 0))
    stray_i: int = 0  # I- with no entity open before it: begins one
    type_changing_i: int = 0  # I- after an entity of another type: begins one
    shared_pictures: int = 0  # posts whose picture an earlier post has already shown
    pictures_found: int = 0  # posts with a picture that decodes; likewise the next two
    pictures_missing: int = 0
    pictures_unreadable: int = 0
    posts_annotated: int = 0
    size_mismatch: int = 0  # pictures whose XML states another size than the upright picture has
    boxes: dict[str, int] = field(default_factory=lambda: dict.fromkeys(TYPES, 0))
    boxes_joined: int = 0
    boxes_unmatched: int = 0
    boxes_ambiguous: int = 0  # the name is that of entities of several types: the first in the text is taken
    boxes_clipped: int = 0
    boxes_dropped: int = 0
    objects_without_box: int = 0
    unmatched_names: list[str] = field(default_factory=list)  # "file: name"
    picture_problems: list[str] = field(default_factory=list)  # "file: what is wrong"

    def to_dict(self) -> dict[str, Any]:
        """The summary as JSON values, in the order above."""
        return asdict(self)


@dataclass
class DatasetSummary:
    """What an import wrote: a summary a split, and the splits of the release that were not there."""

    splits: dict[str, SplitSummary]
    absent_splits: list[str]

    def to_dict(self) -> dict[str, Any]:
        """The content of `summary.json`."""
        return {
            "format": DATASET_FORMAT,
            "source": "twitter",
            "absent_splits": self.absent_splits,
            "splits": {split: summary.to_dict() for split, summary in self.splits.items()},
        }


@dataclass(frozen=True, slots=True)
class TextPost:
    """A post as the CoNLL file gives it. Entities are code points of `text`."""

    post_id: str
    image_id: str
    text: str
    entities: tuple[Span, ...]


@dataclass(frozen=True, slots=True)
class VocObject:
    """A named box of an XML file, in pixels, as annotated: it may lie outside the picture."""

    name: str
    xyxy_px: tuple[float, float, float, float]


@dataclass(frozen=True, slots=True)
class VocFile:
    """An XML file: the size it states (width, height; None where it states none) and its objects."""

    path: Path
    size: tuple[int, int] | None
    objects: tuple[VocObject, ...]
    objects_without_box: int


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


def _lines(path: Path) -> list[str]:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); give the split's file there") from error
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise DataError(
            f"{path}:{line}: byte {data[error.start]:#04x} is not UTF-8; convert the file"
        ) from error
    # Only the line feed ends a line: tokens may hold U+0085 or U+2028, at which str.splitlines would cut.
    return [line.removesuffix("\r") for line in text.split("\n")]


def _blocks(path: Path) -> Iterator[_Block]:
    block: _Block | None = None
    for number, line in enumerate(_lines(path), start=1):
        if line.startswith("IMGID:") and "\t" not in line:
            if block is not None:
                yield _with_words(path, block)
            block = _Block(number, _image_id(path, number, line), [])
        elif line.strip(" "):
            word = _word(path, number, line)
            if block is None:
                raise DataError(
                    f"{path}:{number}: {line!r} stands before any IMGID; begin the post with IMGID:<id>"
                )
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
    if not _IMAGE_ID.fullmatch(image_id):
        raise DataError(
            f"{path}:{number}: {line!r} is no picture's id; use letters, digits, '_', '-' and '.'"
        )
    return image_id


def _word(path: Path, number: int, line: str) -> tuple[str, str]:
    # No strip(): U+00A0 or U+FE0F alone is a token of the datasets.
    token, tab, tag = line.partition("\t")
    tag = tag.strip(" ")
    if not tab or "\t" in tag:
        raise DataError(
            f"{path}:{number}: {line!r} is not token<TAB>tag; write one token, one tab and its tag"
        )
    if not token:
        raise DataError(f"{path}:{number}: {line!r} has an empty token; write the token or remove the line")
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


def read_voc(path: Path) -> VocFile:
    """The named boxes of a Pascal VOC file, read without entities or DTDs.

    Raises:
        DataError: naming the file, and the line or object, for broken XML and for a corner that is missing or
            not a finite number.
    """
    try:
        root = SafeTree.fromstring(path.read_bytes(), forbid_dtd=True)
    except ParseError as error:
        line = error.position[0]
        raise DataError(f"{path}:{line}: broken XML ({error}); repair the file or remove it") from error
    except (DefusedXmlException, ValueError, LookupError, OSError) as error:
        raise DataError(
            f"{path}: cannot be read as plain XML ({error}); repair the file or remove it"
        ) from error
    if root.tag != "annotation":
        raise DataError(f"{path}: <{root.tag}> is not a Pascal VOC file; its root must be <annotation>")
    objects: list[VocObject] = []
    without_box = 0
    for number, element in enumerate(root.findall("object"), start=1):
        bndbox = element.find("bndbox")
        if bndbox is None:
            without_box += 1
            continue
        xyxy_px = _corners(path, number, bndbox)
        names = [name.text or "" for name in element.findall("name")] or [""]
        objects.extend(VocObject(" ".join(name.split()), xyxy_px) for name in names)
    return VocFile(path, _stated_size(root), tuple(objects), without_box)


def _corners(path: Path, number: int, bndbox: Element) -> tuple[float, float, float, float]:
    values = []
    for corner in _CORNERS:
        text = bndbox.findtext(corner)
        try:
            value = float(text) if text is not None else math.nan
        except ValueError:
            value = math.nan
        if not math.isfinite(value):
            raise DataError(f"{path}: object {number} has {corner} {text!r}; write a number of pixels")
        values.append(value)
    return values[0], values[1], values[2], values[3]


def _stated_size(root: Element) -> tuple[int, int] | None:
    try:
        width, height = (int(float(root.findtext(f"size/{side}") or 0)) for side in ("width", "height"))
    except (ValueError, OverflowError):
        return None
    return (width, height) if width > 0 and height > 0 else None


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


def _clip(
    xyxy_px: tuple[float, float, float, float], size: tuple[int, int] | None
) -> tuple[float, float, float, float] | None:
    """The part of a box within a picture of (width, height), None if nothing is left."""
    width, height = size if size is not None else (math.inf, math.inf)
    x_min, y_min = max(xyxy_px[0], 0.0), max(xyxy_px[1], 0.0)
    x_max, y_max = min(xyxy_px[2], width), min(xyxy_px[3], height)
    return (x_min, y_min, x_max, y_max) if x_min < x_max and y_min < y_max else None


def _join(
    post: TextPost, voc: VocFile, size: tuple[int, int] | None, known: set[str], summary: SplitSummary
) -> Iterator[Box]:
    """The boxes of a post, each with the type of the entity that bears its name.

    `known` are the keys that need no report here: the entities of other posts that show the same picture.
    """
    types_by_key = _types_by_key(post)
    for voc_object in voc.objects:
        key = match_key(voc_object.name)
        if key not in types_by_key:
            if key not in known:
                summary.boxes_unmatched += 1
                summary.unmatched_names.append(f"{voc.path.name}: {voc_object.name}")
            continue
        summary.boxes_ambiguous += len(types_by_key[key]) > 1
        clipped = _clip(voc_object.xyxy_px, size)
        if clipped is None:
            summary.boxes_dropped += 1
            continue
        summary.boxes_clipped += clipped != voc_object.xyxy_px
        summary.boxes_joined += 1
        box = Box(types_by_key[key][0], *clipped)
        summary.boxes[box.type] += 1
        yield box


# ---- pictures and posts ---------------------------------------------------------------------------------


def _index_pictures(root: Path) -> dict[str, Path]:
    directories = sorted(path for path in root.glob("*_images") if path.is_dir())
    if not directories:
        raise DataError(
            f"{root}: no directory *_images; put the pictures in one (an empty one imports the text alone)"
        )
    pictures: dict[str, Path] = {}
    for directory in directories:
        for path in sorted(directory.iterdir(), key=lambda path: path.suffix.lower() != ".jpg"):
            if path.suffix.lower() in _IMAGE_SUFFIXES:
                pictures.setdefault(path.stem, path)
    return pictures


def _read_picture(path: Path, summary: SplitSummary) -> tuple[bytes, tuple[int, int]] | None:
    """The encoded picture and its upright (width, height) in pixels, None if it does not decode."""
    try:
        data = path.read_bytes()
        height, width = images.decode(data, images.ImageLimits()).shape[:2]
    except (images.ImageProblem, OSError) as problem:
        summary.pictures_unreadable += 1
        summary.picture_problems.append(f"{path.name}: {problem}")
        return None
    summary.pictures_found += 1
    return data, (width, height)


def read_split(root: Path, split: str, summary: SplitSummary | None = None) -> Iterator[Post]:
    """The posts of a split. Its text and XML are read and checked at once, its pictures one by one after.

    A missing or unreadable picture leaves `image` None and keeps the post. `boxes_annotated` is whether the
    picture has an XML. Boxes are in pixels of the upright picture, clipped to it; where there is no picture,
    to the size the XML states. `summary` is complete when the posts are.

    Raises:
        DataError: what `parse_conll` and `read_voc` raise, or there is no directory of pictures.
    """
    summary = SplitSummary() if summary is None else summary
    posts = parse_conll(root / f"{split}.txt", summary)
    pictures = _index_pictures(root)
    paths = {post.image_id: root / "xml" / f"{post.image_id}.xml" for post in posts}
    vocs = {image_id: read_voc(path) for image_id, path in paths.items() if path.is_file()}
    return _stream(posts, pictures, vocs, summary)


def _stream(
    posts: list[TextPost], pictures: dict[str, Path], vocs: dict[str, VocFile], summary: SplitSummary
) -> Iterator[Post]:
    keys: dict[str, set[str]] = defaultdict(set)
    for post in posts:
        keys[post.image_id].update(_types_by_key(post))
    for post in posts:
        picture = None
        if post.image_id in pictures:
            picture = _read_picture(pictures[post.image_id], summary)
        else:
            summary.pictures_missing += 1
            summary.picture_problems.append(f"{post.image_id}: no such picture")
        boxes: tuple[Box, ...] = ()
        voc = vocs.get(post.image_id)
        if voc is not None:
            size = picture[1] if picture is not None else voc.size
            summary.posts_annotated += 1
            first = "#" not in post.post_id  # what concerns the picture alone is counted once
            summary.size_mismatch += first and voc.size is not None and voc.size != size
            summary.objects_without_box += voc.objects_without_box if first else 0
            known = keys[post.image_id] if first else {match_key(item.name) for item in voc.objects}
            boxes = tuple(_join(post, voc, size, known, summary))
        yield Post(
            post_id=post.post_id,
            text=post.text,
            image=picture[0] if picture is not None else None,
            entities=post.entities,
            boxes=boxes,
            boxes_annotated=voc is not None,
        )


# ---- writing --------------------------------------------------------------------------------------------


def write_split(posts: Iterable[Post], uri: str, rows_per_file: int = ROWS_PER_FILE) -> int:
    """Write posts as `part-00000.parquet`, … under `uri`, each file at once; the number of rows written.

    Raises:
        StorageError: if `uri` cannot be written.
    """
    rows = 0
    for number, part in enumerate(_batches(posts, rows_per_file)):
        storage.write_bytes(storage.join(uri, f"part-{number:05d}.parquet"), _parquet(part))
        rows += len(part)
    return rows


def _batches(posts: Iterable[Post], size: int) -> Iterator[list[Post]]:
    remaining = iter(posts)
    while batch := list(islice(remaining, size)):
        yield batch


def _parquet(posts: Sequence[Post]) -> bytes:
    sink = pa.BufferOutputStream()
    with pq.ParquetWriter(sink, TRAINING_SCHEMA, compression="zstd") as writer:
        for group in _batches(posts, ROWS_PER_GROUP):
            writer.write_table(pa.Table.from_pylist([asdict(post) for post in group], schema=TRAINING_SCHEMA))
    return bytes(sink.getvalue())


def choose_splits(root: Path, named: Sequence[str] | None = None) -> tuple[list[str], list[str]]:
    """The splits to import and those absent. `named` ones must exist; without, those that exist are taken.

    Raises:
        DataError: if `root` is no directory, a name is no split's, or a split that is needed is not there.
    """
    if not root.is_dir():
        raise DataError(f"{root}: no such directory; give --root the directory that holds train.txt")
    present = [split for split in SPLITS if (root / f"{split}.txt").is_file()]
    for split in named or ():
        if split not in SPLITS:
            raise DataError(f"--splits: {split!r} is no split; choose from {', '.join(SPLITS)}")
        if split not in present:
            raise DataError(f"{root / split}.txt: missing; put it there or leave {split!r} out of --splits")
    if not present:
        raise DataError(
            f"{root}: none of train.txt, valid.txt, test.txt; give --root the directory with them"
        )
    return [split for split in present if split in (named or present)], [
        s for s in SPLITS if s not in present
    ]


def import_dataset(
    root: Path,
    output: str,
    splits: Sequence[str] | None = None,
    overwrite: bool = False,
    rows_per_file: int = ROWS_PER_FILE,
) -> DatasetSummary:
    """Import a release from `root` to `output`, all or nothing, and store the summary beside the splits.

    All text and XML is checked before anything is written. A local output is written in a hidden sibling
    directory and renamed when it is complete; in an object store an import that fails deletes what it wrote.

    Raises:
        DataError: the release is not as it should be, or `output` holds something that may not be replaced.
        StorageError: `output` cannot be written.
    """
    chosen, absent = choose_splits(root, splits)
    _check_output(output, overwrite)
    summary = DatasetSummary({split: SplitSummary() for split in chosen}, absent)
    streams = {split: read_split(root, split, summary.splits[split]) for split in chosen}
    final = _local_path(output)
    target = output if final is None else str(final.with_name(f".{final.name}.unfinished"))
    storage.delete_directory(target)
    try:
        marker = storage.join(target, _UNFINISHED)
        storage.write_text(storage.join(marker, "marker.txt"), "an import is under way or was cut off\n")
        for split, posts in streams.items():
            write_split(posts, storage.join(target, split), rows_per_file)
        document = json.dumps(summary.to_dict(), indent=2, ensure_ascii=False)
        storage.write_text(storage.join(target, SUMMARY_FILE), document + "\n")
        storage.delete_directory(marker)
        if final is not None:
            _put_in_place(Path(target), final)
    except BaseException:
        with suppress(StorageError):  # the first error is the one to tell
            storage.delete_directory(target)
        raise
    return summary


def _local_path(uri: str) -> Path | None:
    filesystem, path = storage.filesystem(uri)
    return Path(path).resolve() if isinstance(filesystem, pafs.LocalFileSystem) else None


def _names(uri: str) -> set[str]:
    """The names directly under a URI; none where there is nothing."""
    filesystem, path = storage.filesystem(uri)
    try:
        if filesystem.get_file_info(path).type == pafs.FileType.File:
            raise DataError(f"{uri}: is a file; give a directory")
        selector = pafs.FileSelector(path, allow_not_found=True)
        return {info.base_name for info in filesystem.get_file_info(selector)}
    except OSError as error:
        raise StorageError(
            f"{uri}: cannot be listed ({' '.join(str(error).split())}); check the name and your rights"
        ) from error


def _check_output(output: str, overwrite: bool) -> None:
    names = _names(output)
    if not names or _UNFINISHED in names:
        return
    if SUMMARY_FILE not in names or not _is_dataset(storage.join(output, SUMMARY_FILE)):
        raise DataError(f"{output}: holds files that are no prepared dataset; give an empty or new directory")
    if not overwrite:
        raise DataError(
            f"{output}: holds a prepared dataset; give --overwrite to replace it, or another output"
        )


def _is_dataset(uri: str) -> bool:
    try:
        document = json.loads(storage.read_bytes(uri))
    except ValueError:
        return False
    return isinstance(document, dict) and document.get("format") == DATASET_FORMAT


def _put_in_place(finished: Path, final: Path) -> None:
    replaced = final.with_name(f".{final.name}.replaced")
    storage.delete_directory(str(replaced))
    if final.exists():
        final.rename(replaced)
    finished.rename(final)
    storage.delete_directory(str(replaced))
