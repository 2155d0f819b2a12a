"""A night of the demo's world as a finished run has left it, without a model: gold with noise, and odd posts.

Archive, annotations and tags belong together: what a report is made of.
"""

import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from mnerqg.archive import run as tag_run
from mnerqg.archive.jsonlines import row_hashes
from mnerqg.archive.reading import open_archive
from mnerqg.config_jobs import ColumnsConfig, TagConfig
from mnerqg.datasets.prepared import write_split
from mnerqg.demo.texts import Draft, Names, as_typed, make_draft, make_names
from mnerqg.demo.world import illustrate, jpeg
from mnerqg.io import storage
from mnerqg.schema import Box, Post, Span, tags_schema

TYPES = ("PER", "LOC", "ORG", "OTHER")
HOSTILE = (
    "<script>document.title = 'pwned'</script> said {PER}",
    '"><img src=x onerror="document.title=\'pwned\'"> in {LOC}',
    "</script><script>document.title = 'pwned'</script> {ORG}",
    "{PER} \u202e{LOC} turned around\u202c by an override",
    "NUL \0 and bell \a before {OTHER}",
    "{{constructor.constructor('document.title=1')()}} ${7*7} {PER}",
    "مرحبا {PER} وأهلا بكم في {LOC} 👋🏽 مساء الخير",
    "{ORG} שלום מתל אביב {LOC}",
    "👩‍👩‍👧‍👦🇪🇺 {PER} 𝒜𝓃𝓃𝒶 Cafe\u0301 in {LOC}",
    "{PER} " + "and so on " * 10_000,
)
_DISTINCT = 240
_ROWS_PER_FILE = 1_000


@dataclass(frozen=True)
class Night:
    """Where the parts of a night lie."""

    archive: str
    data: str
    tags: str


@dataclass
class _Made:
    """A post of the world: its text with gold entities, and the pictures (file name, size, gold boxes)."""

    text: str
    spans: list[Span]
    pictures: list[tuple[str, bytes, tuple[int, int], dict[str, tuple[int, int, int, int]]]]


def write_night(
    folder: str,
    posts: int,
    *,
    seed: int = 5,
    noise: float = 0.15,
    finished: bool = True,
    hostile: bool = True,
) -> Night:
    """Write archive, annotations (split `test`) and tags of `posts` posts below `folder`, local or s3://.

    Every tenth post has two pictures, some pictures are missing, and the last posts, if `hostile`, have texts that
    attack or confuse what shows them. The same arguments write the same.
    """
    rng = random.Random(seed)
    _, names = make_names(rng)
    night = Night(*(storage.join(folder, name) for name in ("archive", "data", "tags")))
    made = [_make(rng, names, number) for number in range(min(posts, _DISTINCT))]
    for one in made:
        for name, data, _, _ in one.pictures:
            storage.write_bytes(storage.join(night.archive, "images", name), data)
    texts = HOSTILE if hostile else ()
    rows, gold, tags = [], [], []
    for number in range(posts):
        odd = number - (posts - len(texts))
        one = made[number % len(made)]
        if odd >= 0:
            text, spans = _fill(rng, texts[odd], names)
            one = _Made(text, spans, one.pictures)
        failed = _failure(number)
        uris = [f"images/{name}" for name, _, _, _ in one.pictures] if failed != "none" else []
        rows.append({"post_id": f"night-{number:05d}", "text": one.text, "image_uris": uris, "lang": "en"})
        gold.append(_gold(f"night-{number:05d}", one, failed))
        tags.append(_tagged(rng, f"night-{number:05d}", one, failed, noise))
    archive = storage.join(night.archive, "posts.parquet")
    _write(archive, pa.Table.from_pylist(rows))
    write_split(gold, storage.join(night.data, "test"))
    _write_run(night, archive, tags, finished)
    return night


def _make(rng: random.Random, names: Names, number: int) -> _Made:
    draft = make_draft(rng, names)
    pictures = []
    for place in range(2 if number % 10 == 4 else 1):
        picture, _ = illustrate(rng, draft, names)
        boxes = {kind: box for kind, box in picture.boxes.items() if kind in draft.surfaces}
        pictures.append((f"{number:04d}-{place}.jpg", jpeg(picture.image), picture.image.size, boxes))
    text, spans = _spans(draft)
    return _Made(text, spans, pictures)


def _spans(draft: Draft) -> tuple[str, list[Span]]:
    text, spans, at = as_typed(draft.tokens), [], 0
    for kind, surfaces in draft.surfaces.items():
        at = 0
        for surface in surfaces:
            start = text.index(surface, at)
            at = start + len(surface)
            spans.append(Span(start, at, kind))
    return text, sorted(spans, key=lambda span: span.start)


def _fill(rng: random.Random, template: str, names: Names) -> tuple[str, list[Span]]:
    text, spans = template, []
    for kind in TYPES:
        slot = f"{{{kind}}}"
        if slot in text:
            start, name = text.index(slot), rng.choice(names[kind])
            text = text.replace(slot, name, 1)
            shift = len(name) - len(slot)
            spans = [
                Span(s.start + shift * (s.start > start), s.end + shift * (s.start > start), s.type)
                for s in spans
            ]
            spans.append(Span(start, start + len(name), kind))
    return text, spans


def _failure(number: int) -> str | None:
    return {7: "missing", 13: "none", 19: "unreadable", 23: "too_large"}.get(number % 60)


def _gold(post_id: str, one: _Made, failed: str | None) -> Post:
    boxes = [Box(kind, *map(float, box)) for kind, box in one.pictures[0][3].items()]
    image = one.pictures[0][1] if failed is None else None
    return Post(post_id, one.text, image, tuple(one.spans), tuple(boxes if image else ()), image is not None)


def _tagged(rng: random.Random, post_id: str, one: _Made, failed: str | None, noise: float) -> dict[str, Any]:
    regions = [] if failed else _regions(rng, one, noise)
    first = {region["type"]: place for place, region in reversed(list(enumerate(regions)))}
    entities = []
    for span in one.spans:
        if rng.random() < noise / 2:
            continue
        kind = rng.choice(TYPES) if rng.random() < noise else span.type
        end = span.end
        if rng.random() < noise / 2 and " " in one.text[span.start : span.end]:
            end = span.start + one.text[span.start : span.end].index(" ")
        entities.append(_entity(rng, one.text, span.start, end, kind, first, sure=0.9))
    taken = {place for span in one.spans for place in range(span.start, span.end)}
    word = one.text.split(" ")[0]
    if word.isalpha() and rng.random() < noise and not taken & set(range(len(word))):
        entities.append(_entity(rng, one.text, 0, len(word), rng.choice(TYPES), first, sure=0.4))
    status = failed or "ok"
    sizes = [None if failed else size for _, _, size, _ in one.pictures]
    errors = {
        "missing": "404 Not Found",
        "unreadable": "not a picture",
        "too_large": f"more than 20,000,000 bytes ({rng.randint(20_000_001, 90_000_000):,})",
    }
    error = errors.get(status)
    return {
        "post_id": post_id,
        "lang": "en",
        "entities": sorted(entities, key=lambda entity: entity["start"]),
        "regions": regions,
        "existence": [{"type": kind, "score": rng.random()} for kind in TYPES],
        "image_status": status,
        "image_width": sizes[0] and sizes[0][0],
        "image_height": sizes[0] and sizes[0][1],
        "images": []
        if failed == "none"
        else [
            {"status": status, "width": size and size[0], "height": size and size[1], "error": error}
            for size in sizes
        ],
        "text_status": "truncated" if len(one.text) > 1_000 else "ok",
        "error": error,
        "retryable": status == "missing",
        "model_id": "0123456789abcdef",
    }


def _entity(
    rng: random.Random, text: str, start: int, end: int, kind: str, regions: dict[str, int], sure: float
) -> dict[str, Any]:
    return {
        "text": text[start:end],
        "start": start,
        "end": end,
        "type": kind,
        "score": min(0.999, max(0.26, rng.gauss(sure, 0.12))),
        "region": regions.get(kind),
    }


def _regions(rng: random.Random, one: _Made, noise: float) -> list[dict[str, Any]]:
    found = []
    for place, (_, _, (width, height), boxes) in enumerate(one.pictures):
        for kind, (left, top, right, bottom) in boxes.items():
            if rng.random() < noise / 2:
                continue
            spread = 0.4 if rng.random() < noise else 0.04
            moved = [
                (corner + rng.gauss(0, spread) * edge, limit)
                for corner, edge, limit in (
                    (left, right - left, width),
                    (top, bottom - top, height),
                    (right, right - left, width),
                    (bottom, bottom - top, height),
                )
            ]
            x_min, y_min, x_max, y_max = (min(max(0.0, corner), limit) for corner, limit in moved)
            if x_max - x_min > 4 and y_max - y_min > 4:
                corners = {"x_min": x_min, "y_min": y_min, "x_max": x_max, "y_max": y_max}
                score = min(0.99, max(0.3, rng.gauss(0.8, 0.12)))
                found.append({"type": kind, **corners, "score": score, "image_index": place})
    return found


def _write(uri: str, table: pa.Table) -> None:
    buffer = pa.BufferOutputStream()
    pq.write_table(table, buffer, compression="zstd", row_group_size=500)
    storage.write_bytes(uri, buffer.getvalue().to_pybytes())


def _write_run(night: Night, archive_uri: str, tags: list[dict[str, Any]], finished: bool) -> None:
    """The folder as jobs/tag.py leaves it."""
    columns = ColumnsConfig(pass_through=("lang",))
    archive = open_archive(storage.absolute(archive_uri), columns)
    hashes = row_hashes(storage.path_of(archive.files[0].uri), 0, len(tags))
    config = TagConfig(columns=columns)
    roots = {"pictures": {"roots": [storage.absolute(night.archive)]}}
    asked = tag_run.asked("0123456789abcdef", archive, roots, None)
    request = {"model": "models/demo", "input": list(archive.uris), "config": config.model_dump(mode="json")}
    schema = tags_schema([pa.field("lang", pa.string())], several_pictures=True)
    folder = tag_run.tags_folder(night.tags)
    with folder.writing(asked, {"run_id": "r1", "request": request}):
        rows = [{**row, "row_hash": int(name)} for row, name in zip(tags, hashes, strict=True)]
        rows = rows if finished else rows[: len(rows) // 2]
        for start in range(0, len(rows), _ROWS_PER_FILE):
            part = pa.Table.from_pylist(rows[start : start + _ROWS_PER_FILE], schema=schema)
            _write(storage.join(tag_run.tags_of(night.tags), f"w-{start:06d}.parquet"), part)
        if finished:
            facts = {
                "run_id": "r1",
                **request,
                "output": night.tags,
                "seconds": 41.5,
                "rows_per_second": 120.4,
            }
            tag_run.finish(folder, archive, facts, max_failed=1.0)


def write_training(folder: Path, epochs: int = 12) -> Path:
    """A training run's metrics.jsonl: curves of the usual shape."""
    import json

    rng = random.Random(1)
    lines = []
    for epoch in range(1, epochs + 1):
        left = 0.75**epoch
        scores = {"f1": 0.86, "precision": 0.88, "recall": 0.84, "accuracy_50": 0.78, "gmner_f1": 0.7}
        scores |= {f"f1_{kind}": top for kind, top in zip(TYPES, (0.93, 0.88, 0.8, 0.71), strict=True)}
        record = {
            "epoch": epoch,
            "loss": 0.6 + 5 * left,
            "loss_grounding": 0.9 + 4 * left,
            "loss_existence": 0.1 + 0.6 * left,
            "loss_spans": 0.05 + 0.4 * left,
            "balance": 0.35 + 0.3 * left,
            "mean_balance": 0.36 + 0.33 * left,
            "learning_rate_encoder": 1e-4 * (1 - (epoch - 0.5) / epochs),
            "learning_rate_heads": 1e-3 * (1 - (epoch - 0.5) / epochs),
            **{name: top * (1 - left) + rng.gauss(0, 0.004) for name, top in scores.items()},
        }
        lines.append(json.dumps(record))
    folder.mkdir(parents=True, exist_ok=True)
    lines[-1] = json.dumps(json.loads(lines[-1]) | {"f1_shuffled": 0.5, "f1_none": 0.4})
    (folder / "metrics.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder
