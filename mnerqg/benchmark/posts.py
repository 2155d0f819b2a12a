"""The posts that are measured: some of an archive, spread over it, or made-up ones."""

import random
from collections.abc import Sequence
from io import BytesIO
from itertools import islice

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from mnerqg.archive.lookup import picture_values, read_rows
from mnerqg.archive.reading import Archive, text_values
from mnerqg.config_jobs import ColumnsConfig, PicturesConfig
from mnerqg.errors import ConfigError
from mnerqg.io import storage
from mnerqg.io.picture_store import PictureStore
from mnerqg.schema import Post

_SENTENCES = (
    "RT @ada : just landed in Lisbon with Grace Hopper , so many people at the BBC studio today ! can 't wait for the "
    "World Cup # Oslo2026 https://t.co/x1Y2z3 thank you London , see you tomorrow at Camp Nou with FC Barcelona and "
    "Marie Curie . the new Nokia is here , and it rains in Paris again"
)
_SIDES = (640, 480)  # of a made-up picture, pixels
_PICTURES = 32
_ROWS_A_FILE = 100_000
_ROWS_A_GROUP = 5_000


def spread_posts(
    archive: Archive, columns: ColumnsConfig, pictures: PicturesConfig, count: int
) -> list[Post]:
    """`count` posts of an archive, or all if it has fewer, evenly spread over it, each with its first picture.

    Raises:
        StorageError, DataError: the archive cannot be read.
    """
    wanted = set(np.linspace(0, archive.rows - 1, min(count, archive.rows)).round().astype(int).tolist())
    rows: list[tuple[str | None, str | None, bytes | str | None]] = []
    place = 0
    for _, table in read_rows(archive):
        here = [number - place for number in range(place, place + table.num_rows) if number in wanted]
        place += table.num_rows
        if here:
            taken = table.take(pa.array(here))
            ids, texts = (text_values(taken[name])[0] for name in (columns.post_id, columns.text))
            firsts = [own[0] if own else None for own in picture_values(archive, columns, taken)]
            rows += zip(ids, texts, firsts, strict=True)
    fetched = PictureStore(pictures).fetch_many([one if isinstance(one, str) else None for _, _, one in rows])
    return [
        Post(post_id or "", text, picture if isinstance(picture, bytes) else found.data)
        for (post_id, text, picture), found in zip(rows, fetched, strict=True)
    ]


def spread_uris(archive: Archive, columns: ColumnsConfig, count: int) -> list[str]:
    """`count` picture URIs of an archive, or all if it has fewer, in its order, each once.

    Raises:
        ConfigError: the archive holds no URIs.
        StorageError, DataError: it cannot be read.
    """
    if archive.pictures not in ("uris", "lists", "structs"):
        held = "the pictures themselves" if archive.pictures == "bytes" else "no pictures"
        raise ConfigError(
            f"--input {archive.name} holds {held}; give an archive with {columns.image_uri}, or name the column: "
            "--columns.image_uri NAME"
        )
    values = (
        value
        for _, table in read_rows(archive)
        for own in picture_values(archive, columns, table)
        for value in own
        if isinstance(value, str)
    )
    return list(islice(dict.fromkeys(values), count))


def made_up_posts(count: int, seed: int = 0) -> list[Post]:
    """Posts of a tweet's length, each with one of 32 JPEGs of 640x480 with about 100 kB."""
    draw = random.Random(seed)
    pictures = [_picture(seed + number) for number in range(min(count, _PICTURES))]
    return [
        Post(f"p{number:07}", made_up_text(draw), pictures[number % _PICTURES]) for number in range(count)
    ]


def made_up_text(draw: random.Random) -> str:
    """6 to 24 words."""
    words = _SENTENCES.split()
    start, length = draw.randrange(len(words)), draw.randint(6, 24)
    return " ".join((words * 2)[start : start + length])


def write_archive(uri: str, rows: int) -> None:
    """An archive of `rows` made-up posts without pictures, in Parquet, of 100,000 rows a file.

    Raises:
        StorageError: it cannot be written.
    """
    draw = random.Random(rows)
    texts = pa.array([made_up_text(draw) for _ in range(1000)])
    for start in range(0, rows, _ROWS_A_FILE):
        numbers = range(start, min(start + _ROWS_A_FILE, rows))
        table = pa.table(
            {
                "post_id": pa.array([f"p{number:09}" for number in numbers]),
                "text": texts.take(pa.array([number % 1000 for number in numbers])),
            }
        )
        sink = BytesIO()
        pq.write_table(table, sink, row_group_size=_ROWS_A_GROUP)
        storage.write_bytes(storage.join(uri, f"posts-{start // _ROWS_A_FILE:04}.parquet"), sink.getvalue())


def posts_table(posts: Sequence[Post], columns: ColumnsConfig) -> pa.Table:
    """Posts as the rows of an archive that holds the pictures themselves."""
    return pa.table(
        {
            columns.post_id: pa.array([post.post_id for post in posts], pa.string()),
            columns.text: pa.array([post.text for post in posts], pa.string()),
            columns.image: pa.array([post.image for post in posts], pa.binary()),
        }
    )


def _picture(seed: int) -> bytes:
    """As large and as hard to decode as a photograph: smooth shapes and some grain."""
    generator = np.random.default_rng(seed)
    colours = generator.integers(0, 256, (6, 8, 3), np.uint8)
    blobs = np.asarray(Image.fromarray(colours).resize(_SIDES, Image.Resampling.BICUBIC), np.float32)
    grain = generator.normal(0, 9, (*blobs.shape[:2], 1))
    sink = BytesIO()
    Image.fromarray(np.clip(blobs + grain, 0, 255).astype(np.uint8)).save(sink, "JPEG", quality=85)
    return sink.getvalue()
