"""The model stage of bulk tagging: prepared rows to tags, in Ray Data actors (DESIGN §6).

The driver imports this module only to pass the stage on. torch, seven seconds of it, is imported by the actors.
"""

import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pyarrow as pa
import ray.util.metrics

from mnerqg.archive.counts import MODEL_RAISED
from mnerqg.archive.jsonlines import LINE_ERROR
from mnerqg.archive.reading import text_values
from mnerqg.config_jobs import ColumnsConfig, Precision
from mnerqg.distributed.picture_stages import PICTURES
from mnerqg.distributed.tag_monitor import ActorReport
from mnerqg.errors import one_line
from mnerqg.inputs.images import Letterbox
from mnerqg.inputs.posts import PreparedPost, merge_pictures
from mnerqg.queries import EntityQuery
from mnerqg.schema import ROW_HASH, TaggedPost, tags_schema
from mnerqg.threads import wait_asleep

if TYPE_CHECKING:
    from mnerqg.tagger import Tagger

CHUNK_BATCHES = 4
"""The model's batches are cut from this many batches sorted by length: padding costs as much as words do."""


@dataclass(frozen=True)
class TagSettings:
    """What a model actor needs to know.

    Attributes:
        model: URI of the model directory.
        queries: what it is asked, its own or others.
        columns: of the archive.
        pass_through: fields that are copied.
        several_pictures: whether the archive holds lists of pictures.
        batch_posts: what the model sees at once.
        windows: of a text that are read at most.
        device: where it runs.
        threads: of torch.
        precision, compiled: see `TagConfig`.
        run_id: the run that metrics are labelled with.
    """

    model: str
    queries: tuple[EntityQuery, ...]
    columns: ColumnsConfig
    pass_through: tuple[pa.Field, ...]
    several_pictures: bool
    batch_posts: int
    windows: int
    device: Literal["cuda", "cpu"]
    threads: int
    precision: Precision | None
    compiled: bool
    run_id: str

    @property
    def schema(self) -> pa.Schema:
        """Of every block and every file of the output."""
        return tags_schema(self.pass_through, several_pictures=self.several_pictures)


class TagPosts:
    """The model actor: weights loaded and warmed up once, then prepared rows to tags.

    Args:
        settings: of the run.
        load_tagger: makes the tagger from the model's URI; None is `Tagger.load`.
        report: called after every batch with what this actor has done.
    """

    def __init__(
        self,
        settings: TagSettings,
        load_tagger: "Callable[[str], Tagger] | None",
        report: Callable[[ActorReport], object],
    ) -> None:
        self._settings = settings
        self._tagger = load_tagger(settings.model) if load_tagger else _load(settings)
        self._side = self._tagger.config.model.image_side
        self._tagger.tag_prepared([self._warm_up_post()])
        self._report = report
        self._metrics = TagMetrics(settings.run_id)
        self._ready = time.monotonic()
        self._busy = 0.0
        self._posts = self._failed = 0

    def __call__(self, rows: pa.Table) -> pa.Table:
        texts, broken = text_values(rows[self._settings.columns.text])
        pictures: list[list[dict[str, Any]]] = rows[PICTURES].to_pylist()
        started = time.monotonic()
        tagged = self._tag(texts, pictures)
        seconds = time.monotonic() - started
        errors = self._row_errors(rows, broken)
        tagged = [_complete(*row) for row in zip(tagged, pictures, errors, strict=True)]
        self._busy += seconds
        self._posts += len(tagged)
        self._failed += sum(post.error is not None for post in tagged)
        ready_s = time.monotonic() - self._ready
        self._report(ActorReport(self._busy, ready_s, self._posts, self._failed))
        self._metrics.count(tagged, pictures, seconds)
        return self._table(rows, tagged, pictures)

    def _tag(
        self, texts: Sequence[str | None], pictures: Sequence[Sequence[dict[str, Any]]]
    ) -> list[TaggedPost]:
        """One answer a post; the model sees one post and picture at a time."""
        pairs = [(row, index) for row, post in enumerate(pictures) for index in _usable(post)]
        prepared = [
            self._prepared(texts[row], pictures[row][index] if index is not None else None)
            for row, index in pairs
        ]
        order = sorted(range(len(pairs)), key=lambda pair: len(prepared[pair].text or ""))
        answers: list[TaggedPost] = [TaggedPost()] * len(pairs)
        for start in range(0, len(order), self._settings.batch_posts):
            part = order[start : start + self._settings.batch_posts]
            tagged = tag_each(self._tagger, [prepared[pair] for pair in part])
            for pair, answer in zip(part, tagged, strict=True):
                answers[pair] = answer
        of_row: list[list[int]] = [[] for _ in texts]
        for pair, (row, _) in enumerate(pairs):
            of_row[row].append(pair)
        return [
            merge_pictures([answers[pair] for pair in own], [pairs[pair][1] or 0 for pair in own])
            for own in of_row
        ]

    def _prepared(self, text: str | None, picture: dict[str, Any] | None) -> PreparedPost:
        if picture is None:
            return PreparedPost(text)
        canvas = np.frombuffer(picture["pixels"], np.uint8).reshape(self._side, self._side, 3)
        letterbox = Letterbox(picture["width"], picture["height"], self._side)
        return PreparedPost(text, canvas, letterbox, image_status="ok")

    def _row_errors(self, rows: pa.Table, broken: Sequence[bool]) -> list[list[str]]:
        """What is wrong with each row itself, whatever its pictures are."""
        lines = rows[LINE_ERROR].to_pylist() if LINE_ERROR in rows.column_names else [None] * rows.num_rows
        return [
            [*([line] if line else []), *(["the text is not valid UTF-8"] if is_broken else [])]
            for line, is_broken in zip(lines, broken, strict=True)
        ]

    def _table(
        self, rows: pa.Table, tagged: Sequence[TaggedPost], pictures: Sequence[Sequence[dict[str, Any]]]
    ) -> pa.Table:
        settings = self._settings
        post_ids = text_values(rows[settings.columns.post_id])[0]
        tags = pa.Table.from_pylist(
            [
                _row(post, self._tagger.model_id)
                | {
                    "post_id": post_id,
                    "retryable": any(picture["retryable"] for picture in own),
                    "images": [{name: picture[name] for name in _PICTURE_FIELDS} for picture in own],
                }
                for post, post_id, own in zip(tagged, post_ids, pictures, strict=True)
            ],
            schema=tags_schema(several_pictures=settings.several_pictures),
        )
        passed = {entry.name: rows[entry.name].cast(entry.type) for entry in settings.pass_through}
        passed[ROW_HASH] = rows[ROW_HASH]
        columns = [passed[name] if name in passed else tags[name] for name in settings.schema.names]
        return pa.Table.from_arrays(columns, schema=settings.schema)

    def _warm_up_post(self) -> PreparedPost:
        canvas = np.zeros((self._side, self._side, 3), np.uint8)
        return PreparedPost("warm up", canvas, Letterbox(self._side, self._side, self._side), "ok")


_PICTURE_FIELDS = ("status", "width", "height", "error")


class TagMetrics:
    """Counters that Ray exports to Prometheus as `ray_mnerqg_*`, labelled with the run."""

    def __init__(self, run_id: str) -> None:
        def counter(name: str, description: str, *tags: str) -> ray.util.metrics.Counter:
            made = ray.util.metrics.Counter(f"mnerqg_{name}", description, ("run", *tags))
            made.set_default_tags({"run": run_id})
            return made

        self._posts = counter("posts", "posts tagged")
        self._pictures = counter("pictures", "pictures, by status", "status")
        self._entities = counter("entities", "entities found, by type", "type")
        self._regions = counter("regions", "regions found, by type", "type")
        self._seconds = counter("model_seconds", "seconds spent in the model")

    def count(
        self, tagged: Sequence[TaggedPost], pictures: Sequence[Sequence[dict[str, Any]]], seconds: float
    ) -> None:
        """Add one batch."""
        self._posts.inc(len(tagged))
        self._seconds.inc(max(seconds, 1e-9))
        for counter, tag, values in (
            (self._pictures, "status", Counter(one["status"] for post in pictures for one in post)),
            (self._entities, "type", Counter(entity.type for post in tagged for entity in post.entities)),
            (self._regions, "type", Counter(region.type for post in tagged for region in post.regions)),
        ):
            for value, count in values.items():
                counter.inc(count, {tag: value})


def _usable(pictures: Sequence[dict[str, Any]]) -> list[int | None]:
    """The places of a post's usable pictures; one None where the text is all there is."""
    usable = [index for index, picture in enumerate(pictures) if picture["status"] == "ok"]
    return list(usable) or [None]


def _complete(post: TaggedPost, pictures: Sequence[dict[str, Any]], errors: list[str]) -> TaggedPost:
    """The post with what became of its pictures, and every error of the row in one line."""
    messages = [
        f"picture {index}: {picture['error']}" if len(pictures) > 1 else picture["error"]
        for index, picture in enumerate(pictures)
        if picture["error"]
    ]
    messages += [*errors, *([post.error] if post.error else [])]
    shown = next((one for one in pictures if one["status"] == "ok"), pictures[0] if pictures else None)
    return replace(
        post,
        image_status=shown["status"] if shown else "none",
        image_width=shown["width"] if shown else None,
        image_height=shown["height"] if shown else None,
        error="; ".join(messages) or None,
    )


def _load(settings: TagSettings) -> "Tagger":
    # Imported here: the picture workers do without, as does a tagger of another kind.
    wait_asleep()
    import torch

    from mnerqg.tagger import Tagger

    torch.set_num_threads(settings.threads)
    return Tagger.load(
        settings.model,
        device=settings.device,
        queries=settings.queries,
        windows=settings.windows,
        precision=settings.precision,
        compiled=settings.compiled,
    )


def tag_each(tagger: "Tagger", posts: Sequence[PreparedPost]) -> list[TaggedPost]:
    """One answer for every post, whatever the model raises.

    A batch that raises is halved, down to the post that caused it, which gets an `error` and empty lists. The
    same halving helps a batch that is too large for the GPU's memory.

    Raises:
        torch.AcceleratorError: the device is lost, and with it every later batch.
    """
    if not posts:
        return []
    try:
        return tagger.tag_prepared(posts)
    except Exception as error:
        import torch

        if isinstance(error, torch.AcceleratorError):
            raise
        if isinstance(error, torch.OutOfMemoryError):
            torch.cuda.empty_cache()
        if len(posts) == 1:
            return [_failed(posts[0], error)]
    middle = len(posts) // 2
    return [*tag_each(tagger, posts[:middle]), *tag_each(tagger, posts[middle:])]


def _failed(post: PreparedPost, error: Exception) -> TaggedPost:
    reason = f"{MODEL_RAISED}{type(error).__name__}: {one_line(error)}"
    failed = TaggedPost(image_status=post.image_status, error=reason)
    return failed if post.text and not post.text.isspace() else replace(failed, text_status="empty")


def _row(post: TaggedPost, model_id: str) -> dict[str, Any]:
    return {
        "entities": [
            {
                "text": entity.text,
                "start": entity.start,
                "end": entity.end,
                "type": entity.type,
                "score": entity.score,
                "region": entity.region,
            }
            for entity in post.entities
        ],
        "regions": [
            {
                "type": region.type,
                "x_min": region.x_min,
                "y_min": region.y_min,
                "x_max": region.x_max,
                "y_max": region.y_max,
                "score": region.score,
                "image_index": region.image_index,
            }
            for region in post.regions
        ],
        "existence": [{"type": kind, "score": score} for kind, score in post.existence],
        "image_width": post.image_width,
        "image_height": post.image_height,
        "image_status": post.image_status,
        "text_status": post.text_status,
        "text_read": post.text_read,
        "error": post.error,
        "model_id": model_id,
    }
