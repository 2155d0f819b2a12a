"""A tagging run of posts with everything that makes an exchange hard, without a model and without Ray."""

import base64
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from mnerqg.archive import run as tag_run
from mnerqg.archive.jsonlines import row_hashes
from mnerqg.archive.reading import open_archive
from mnerqg.config_jobs import ColumnsConfig
from mnerqg.schema import ROW_HASH, tags_schema
from tests.archives import encoded

TYPES = ("PER", "LOC", "ORG", "OTHER")
WORDS = ("Ada", "😀", "👩🏽‍🚀", "Lisbon", "in", "اسمي", "Cafe\u0301", "🇵🇹", "x\ny", "of")
SIZES = ((90, 60), (61, 83), (640, 427))


def post(number: int, random_: random.Random) -> dict[str, Any]:
    """Text, pictures and tags of a post: emoji, up to three pictures and up to four boxes."""
    words = [random_.choice(WORDS) for _ in range(random_.randint(1, 12))]
    text = f"{number} " + " ".join(words)
    names = [word for word in ("Ada", "Lisbon", "اسمي", "👩🏽‍🚀", "x\ny") if text.count(word) == 1]
    sizes = [SIZES[index] for index in range(random_.randint(0, 3))]
    entities = [
        {
            "text": name,
            "start": text.index(name),
            "end": text.index(name) + len(name),
            "type": random_.choice(TYPES),
            "score": 0.5,
            "region": None,
        }
        for name in names
    ]
    regions = []
    for _ in range(random_.randint(0, 4) if sizes else 0):
        index = random_.randrange(len(sizes))
        width, height = sizes[index]
        box = [
            random_.uniform(0, 0.5),
            random_.uniform(0, 0.5),
            random_.uniform(0.5, 1),
            random_.uniform(0.5, 1),
        ]
        sides = zip(("x_min", "y_min", "x_max", "y_max"), box, (width, height) * 2, strict=True)
        regions.append(
            {"type": random_.choice(TYPES), "score": 0.5, "image_index": index}
            | {side: share * edge for side, share, edge in sides}
        )
    return {"post_id": f"p{number}", "text": text, "sizes": sizes, "entities": entities, "regions": regions}


def write_run(
    folder: Path, posts: list[dict[str, Any]], *, pictures: str = "image_uris", roots: Sequence[Path] = ()
) -> Path:
    """The archive at folder/archive and the tags at folder/tags, whose path is returned."""
    archive = folder / "archive"
    archive.mkdir(parents=True)
    for size in SIZES:
        (archive / f"{size[0]}.jpg").write_bytes(encoded(size=size))
    columns: dict[str, Any] = {name: [one[name] for one in posts] for name in ("post_id", "text")}
    uris = [[f"{size[0]}.jpg" for size in one["sizes"]] for one in posts]
    if pictures == "image_uris":
        columns["image_uris"] = uris
    elif pictures == "image_uri":
        columns["image_uri"] = [own[0] if own else None for own in uris]
    elif pictures == "structs":
        given: list[Any] = [
            {"bytes": (archive / own[0]).read_bytes() if number % 2 else None, "path": own[0]}
            if own
            else None
            for number, own in enumerate(uris)
        ]
        columns["image"] = given
    elif pictures == "data URIs":
        data = [(archive / own[0]).read_bytes() if own else None for own in uris]
        columns["image_uri"] = [one and f"data:;base64,{base64.b64encode(one).decode()}" for one in data]
    else:
        columns["image"] = [(archive / own[0]).read_bytes() if own else None for own in uris]
    pq.write_table(pa.table(columns), archive / "posts.parquet", row_group_size=7)
    several = pictures == "image_uris"
    hashes = row_hashes(str(archive / "posts.parquet"), 0, len(posts)).tolist()
    rows = [
        {
            **one,
            "existence": [{"type": kind, "score": 0.5} for kind in TYPES],
            "image_status": "ok" if one["sizes"] else "none",
            "image_width": one["sizes"][0][0] if one["sizes"] else None,
            "image_height": one["sizes"][0][1] if one["sizes"] else None,
            "images": [{"status": "ok", "width": width, "height": height} for width, height in one["sizes"]],
            "model_id": "m1",
            ROW_HASH: row_hash,
        }
        for one, row_hash in zip(posts, hashes, strict=True)
    ]
    config = ColumnsConfig()
    settings = {
        "columns": config.model_dump(mode="json"),
        "pictures": {"roots": [str(root) for root in roots or (archive,)]},
    }
    asked = tag_run.asked("m1", open_archive(str(archive), config), settings, None)
    tags = tag_run.tags_folder(str(folder / "tags"))
    with tags.writing(asked, {"run_id": "r"}):
        half = len(rows) // 2
        (folder / "tags" / "tags").mkdir()
        for name, part in (("a", rows[half:]), ("b", rows[:half])):
            table = pa.Table.from_pylist(part, schema=tags_schema(several_pictures=several))
            pq.write_table(table, folder / "tags" / "tags" / f"{name}-0.parquet")
        tags.finish({"entities": {}, "regions": {}})
    return folder / "tags"
