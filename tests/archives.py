"""Archives of posts for the tests of bulk tagging, with everything in them that goes wrong in real ones.

What is expected of the oddities stands beside them. The statuses hold for pictures of at most `MAX_BYTES` bytes, and
for the model of `tests.conftest.tiny_model` as for `tests.cheap_tagger.CheapTagger`.
"""

import io
import random
import struct
import zlib
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from mnerqg.archive import jsonlines, parquet_files
from mnerqg.archive.parquet_files import ParquetLayout
from mnerqg.archive.reading import Archive
from mnerqg.io import storage
from mnerqg.schema import ROW_HASH, ImageStatus, TextStatus

MAX_BYTES = 200_000
WORDS = ("the", "city", "of", "Lisbon", "and", "Ada", "Lovelace", "in", "an", "Organization", "Names")
_DISTINCT_PICTURES = 200
_UPLOADS_IN_FLIGHT = 16
_ROW_GROUPS_PER_FILE = 3


# ---- oddities --------------------------------------------------------------------------------------


def encoded(kind: str = "JPEG", size: tuple[int, int] = (90, 60), mode: str = "RGB", **options: Any) -> bytes:
    """A picture with something in it, as a file of `kind`."""
    buffer = io.BytesIO()
    picture = Image.radial_gradient("L").resize(size)
    picture = picture.convert("RGB").quantize(32) if mode == "P" else picture.convert(mode)
    picture.save(buffer, kind, **options)
    return buffer.getvalue()


def bomb() -> bytes:
    """A PNG of a few bytes that says it has 30,000 x 30,000 pixels."""
    data = bytearray(encoded("PNG", (1, 1)))
    data[16:24] = struct.pack(">II", 30_000, 30_000)
    data[29:33] = struct.pack(">I", zlib.crc32(data[12:29]))
    return bytes(data)


def deep() -> bytes:
    """A gray PNG of 16 bits."""
    buffer = io.BytesIO()
    Image.fromarray(np.linspace(0, 65535, 90 * 60).reshape(60, 90).astype(np.uint16)).save(buffer, "PNG")
    return buffer.getvalue()


def exif(orientation: int) -> Image.Exif:
    tags = Image.Exif()
    tags[0x0112] = orientation
    return tags


# name -> the file (None: there is none), its status, and its upright size.
PICTURES: dict[str, tuple[bytes | None, ImageStatus, tuple[int, int] | None]] = {
    "plain.jpg": (encoded(), "ok", (90, 60)),
    "with space 100%.jpg": (encoded(size=(64, 64)), "ok", (64, 64)),
    "cmyk.jpg": (encoded(mode="CMYK"), "ok", (90, 60)),
    "palette.png": (encoded("PNG", mode="P"), "ok", (90, 60)),
    "deep.png": (deep(), "ok", (90, 60)),
    "moving.gif": (
        encoded("GIF", save_all=True, append_images=[Image.new("RGB", (90, 60), "red")]), "ok", (90, 60),
    ),
    "turned.jpg": (encoded(exif=exif(6)), "ok", (60, 90)),
    "dot.jpg": (encoded(size=(1, 1)), "ok", (1, 1)),
    "banner.png": (encoded("PNG", (20000, 10)), "ok", (20000, 10)),
    "zero.jpg": (b"", "unreadable", None),
    "cut.jpg": (encoded()[:400], "unreadable", None),
    "page.jpg": (b"<!DOCTYPE html><html>404</html>", "unreadable", None),
    "bomb.png": (bomb(), "too_large", None),
    "heavy.jpg": (encoded() + b"\0" * MAX_BYTES, "too_large", None),
    "gone.jpg": (None, "missing", None),
    "../../x.jpg": (None, "forbidden", None),
    "s3://another-bucket/x.jpg": (None, "forbidden", None),
    "http://169.254.169.254/latest/meta-data": (None, "forbidden", None),
    "file:///etc/passwd": (None, "forbidden", None),
}  # fmt: skip

TEXTS: list[tuple[str | None, TextStatus]] = [
    (None, "empty"),
    ("", "empty"),
    (" \t\n ", "empty"),
    ("word " * 20_000, "truncated"),
    ("👩🏽‍🚀 in 🇵🇹 the city", "ok"),
    ("Cafe\u0301 of Lis\u0301bon", "ok"),
    ("اسمي آدا من لشبونة", "ok"),
    ("a\0b of the city", "ok"),
]

_NO_URI: tuple[str | None, ...] = (None, "")


# ---- writing ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Expected:
    """What tagging has to say of a post. `oddity` names what is odd about it, None for nothing."""

    image_status: ImageStatus
    text_status: TextStatus
    size: tuple[int, int] | None
    oddity: str | None = None


@dataclass(frozen=True)
class Planted:
    """The posts of an archive, by post_id."""

    rows: dict[str, Expected]

    @property
    def image_status(self) -> Counter[str]:
        return Counter(row.image_status for row in self.rows.values())

    @property
    def text_status(self) -> Counter[str]:
        return Counter(row.text_status for row in self.rows.values())

    @property
    def oddities(self) -> Counter[str]:
        return Counter(row.oddity for row in self.rows.values() if row.oddity is not None)


@dataclass(frozen=True)
class _Draft:
    """A post to be written; `file` is what lies at its URI if it is this post's alone."""

    text: str | None
    uri: str | None
    expected: Expected
    file: bytes | None = None


ARCHIVE_SCHEMA = pa.schema(
    [
        ("post_id", pa.string()),
        ("text", pa.string()),
        ("image_uri", pa.string()),
        ("row", pa.int64()),
        ("lang", pa.string()),
    ]
)


def write_archive(
    folder_uri: str,
    posts: int,
    *,
    files: int,
    seed: int,
    bad_share: float = 0.03,
    side: tuple[int, int] = (640, 480),
) -> Planted:
    """Writes `files` Parquet files of `ARCHIVE_SCHEMA`, with several row groups each, and pictures in `images/`.

    Most posts are good, and share 200 JPEGs of `side`. A share of `bad_share` is odd: every one of `PICTURES`,
    of `TEXTS`, no URI and an empty one equally often, at least once each, each with a file of its own. The same
    arguments give the same archive.
    """
    rng = random.Random(seed)
    pictures = {
        f"images/{number:03}.jpg": photo(number + seed * _DISTINCT_PICTURES, side)
        for number in range(min(_DISTINCT_PICTURES, posts))
    }
    assert max(map(len, pictures.values())) <= MAX_BYTES, (
        "the good pictures are too large; choose a smaller side"
    )
    kinds = len(PICTURES) + len(_NO_URI) + len(TEXTS)
    of_each = max(1, round(posts * bad_share / kinds)) if bad_share else 0
    assert of_each * kinds <= posts, f"{posts} posts are too few for {kinds} oddities"
    drafts = list(_odd_drafts(of_each, list(pictures), side, rng))
    good = Expected("ok", "ok", side)
    drafts += [_Draft(sentence(rng), rng.choice(list(pictures)), good) for _ in range(posts - len(drafts))]
    rng.shuffle(drafts)
    _upload(folder_uri, pictures | {one.uri: one.file for one in drafts if one.uri and one.file is not None})
    _write_posts(folder_uri, drafts, files)
    return Planted({_post_id(number): draft.expected for number, draft in enumerate(drafts)})


def _odd_drafts(
    of_each: int, pictures: list[str], side: tuple[int, int], rng: random.Random
) -> Iterator[_Draft]:
    for number in range(of_each):
        for name, (data, status, size) in PICTURES.items():
            is_elsewhere = "//" in name or name.startswith("..")
            uri = name if is_elsewhere else f"images/odd/{number}/{name}"
            yield _Draft(sentence(rng), uri, Expected(status, "ok", size, name), data)
        for uri_or_none in _NO_URI:
            yield _Draft(sentence(rng), uri_or_none, Expected("none", "ok", None, f"URI {uri_or_none!r}"))
        for place, (text, text_status) in enumerate(TEXTS):
            yield _Draft(text, rng.choice(pictures), Expected("ok", text_status, side, f"text {place}"))


def sentence(rng: random.Random) -> str:
    """A few words; not so many that a model of 64 pieces would cut them."""
    return " ".join(rng.sample(WORDS, rng.randint(3, 9)))


def photo(seed: int, size: tuple[int, int]) -> bytes:
    """A JPEG as large and as hard to decode as a photograph: smooth shapes, a gradient and some grain."""
    colours = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), np.uint8)
    blobs = np.asarray(Image.fromarray(colours).resize(size, Image.Resampling.BICUBIC))
    pixels = np.clip(blobs + _texture(size), 0, 255).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=80)
    return buffer.getvalue()


@cache
def _texture(size: tuple[int, int]) -> np.ndarray[Any, np.dtype[np.int16]]:
    """A gradient and grain, the same in all pictures of a size: to draw it takes longer than all the rest."""
    width, height = size
    slope = np.linspace(-40, 40, width)[None, :, None]
    return (slope + np.random.default_rng(0).normal(0, 6, (height, width, 1))).astype(np.int16)


def _post_id(number: int) -> str:
    return f"p{number:07}"


def _upload(folder_uri: str, files: dict[str, bytes]) -> None:
    with ThreadPoolExecutor(_UPLOADS_IN_FLIGHT) as pool:
        names = (storage.join(folder_uri, *name.split("/")) for name in files)
        for _ in pool.map(storage.write_bytes, names, files.values()):
            pass


def _write_posts(folder_uri: str, drafts: list[_Draft], files: int) -> None:
    rows = [
        {
            "post_id": _post_id(number),
            "text": draft.text,
            "image_uri": draft.uri,
            "row": number,
            "lang": ("en", "pt", "de")[number % 3],
        }
        for number, draft in enumerate(drafts)
    ]
    for number in range(files):
        part = rows[len(rows) * number // files : len(rows) * (number + 1) // files]
        _write_table(folder_uri, number, pa.Table.from_pylist(part, schema=ARCHIVE_SCHEMA))


def _write_table(folder_uri: str, number: int, table: pa.Table) -> None:
    buffer = io.BytesIO()
    pq.write_table(table, buffer, row_group_size=max(1, -(-len(table) // _ROW_GROUPS_PER_FILE)))
    storage.write_bytes(storage.join(folder_uri, f"posts-{number:03}.parquet"), buffer.getvalue())


def write_cheap_archive(folder_uri: str, rows: int, files: int) -> None:
    """Many posts without pictures, in seconds: Parquet files with `post_id` and `text`."""
    rng = random.Random(0)
    texts = pa.array([sentence(rng) for _ in range(1000)])
    for number in range(files):
        numbers = range(rows * number // files, rows * (number + 1) // files)
        table = pa.table(
            {
                "post_id": pa.array(map(_post_id, numbers), pa.string(), size=len(numbers)),
                "text": texts.take(pa.array([place % len(texts) for place in numbers], pa.int32())),
            }
        )
        _write_table(folder_uri, number, table)


# ---- reading ---------------------------------------------------------------------------------------


def finished_writes(output: str) -> int:
    """How many files of tags lie in the folder of an unfinished run; a local one may still be written."""
    return len(storage.list_files(output, ".parquet")) if storage.exists(output) else 0


def read_tags(uri: str) -> pa.Table:
    """The rows of all files below `uri`, which must have the same schema; Hive folders give no columns."""
    tables: list[pa.Table] = []
    for entry in storage.list_files(uri, ".parquet"):
        filesystem, path = storage.filesystem(entry.uri)
        table = pq.read_table(path, filesystem=filesystem, partitioning=None)
        first = tables[0].schema if tables else table.schema
        assert table.schema.equals(first, check_metadata=True), (
            f"{entry.uri} has another schema than the first file:\n{table.schema}\nrather than\n{first}"
        )
        tables.append(table)
    assert tables, f"{uri} holds no *.parquet files"
    return pa.concat_tables(tables)


def sorted_rows(table: pa.Table) -> pa.Table:
    return table.sort_by(ROW_HASH)


def assert_same_rows(left: pa.Table, right: pa.Table) -> None:
    """Both have the same rows by `row_hash`, each once, and equal values in all columns to the last bit."""
    assert left.schema.equals(right.schema), f"the schemas differ:\n{left.schema}\nand\n{right.schema}"
    hashes = [table[ROW_HASH].to_pylist() for table in (left, right)]
    for side, here in zip(("left", "right"), hashes, strict=True):
        twice = [row_hash for row_hash, count in Counter(here).items() if count > 1]
        assert not twice, f"{len(twice)} row_hash more than once on the {side}, such as {twice[0]}"
    for side, here, there in (("left", *hashes), ("right", *reversed(hashes))):
        alone = sorted(set(here) - set(there))
        assert not alone, f"{len(alone)} row_hash on the {side} only, such as {alone[0]}"
    left, right = sorted_rows(left), sorted_rows(right)
    for name in left.column_names:
        _assert_same_column(name, left, right)


def _assert_same_column(name: str, left: pa.Table, right: pa.Table) -> None:
    if left[name].equals(right[name]):
        return
    # Arrow finds that NaN differs from NaN; the representation of a float is exact, and the same for both.
    values = zip(left[name].to_pylist(), right[name].to_pylist(), strict=True)
    differing = [place for place, (one, other) in enumerate(values) if repr(one) != repr(other)]
    if differing:
        place = differing[0]
        raise AssertionError(
            f"the column {name} differs in {len(differing)} rows, first in the one with row_hash "
            f"{left[ROW_HASH][place]}: {left[name][place].as_py()!r} and {right[name][place].as_py()!r}"
        )


def read_archive_here(archive: Archive) -> pa.Table:
    """All posts of an archive, read as the tasks of a run do."""
    tables: list[pa.Table] = []
    if isinstance(archive.layout, ParquetLayout):
        for piece in archive.pieces:
            tables += parquet_files.read_tables(piece, archive.layout)
    else:
        for entry in archive.files:
            with storage.open_stream(entry.uri) as stream:
                tables += jsonlines.read_tables(stream, storage.path_of(entry.uri), archive.layout)
    assert {str(table.schema) for table in tables} == {str(archive.layout.schema)}
    return pa.concat_tables(tables)
