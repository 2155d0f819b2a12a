"""The model stage of bulk tagging: prepared rows to tags, in Ray Data actors (DESIGN §6)."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from mnerqg.config import ColumnsConfig
from mnerqg.data.archive import text_values
from mnerqg.data.images import Letterbox
from mnerqg.distributed.picture_stages import ERROR, HEIGHT, PIXELS, STATUS, WIDTH
from mnerqg.schema import TaggedPost, tags_schema
from mnerqg.tagger import PreparedPost, Tagger

CHUNK_BATCHES = 4
"""The model's batches are cut from this many batches sorted by length: padding costs as much as words do."""


class TagPosts:
    """The model actor: weights loaded and warmed up once, then prepared rows to tags."""

    def __init__(
        self,
        load_tagger: Callable[[str], Tagger],
        model: str,
        columns: ColumnsConfig,
        fields: Sequence[pa.Field],
        batch_posts: int,
        threads: int,
    ) -> None:
        torch.set_num_threads(threads)
        self._tagger = load_tagger(model)
        self._columns = columns
        self._schema = tags_schema(list(fields))
        self._fields = fields
        self._batch_posts = batch_posts
        self._side = self._tagger.config.model.image_side
        self._tagger.tag_prepared([self._warm_up_post()])

    def __call__(self, rows: pa.Table) -> pa.Table:
        posts, post_ids = self._posts(rows)
        order = sorted(range(len(posts)), key=lambda index: len(posts[index].text or ""))
        tagged: list[TaggedPost] = [TaggedPost("")] * len(posts)
        for start in range(0, len(order), self._batch_posts):
            part = order[start : start + self._batch_posts]
            answers = tag_each(self._tagger, [posts[index] for index in part])
            for index, answer in zip(part, answers, strict=True):
                tagged[index] = answer
        return self._table(rows, post_ids, tagged)

    def _posts(self, rows: pa.Table) -> tuple[list[PreparedPost], list[str | None]]:
        texts, broken = text_values(rows[self._columns.text])
        names = (PIXELS, WIDTH, HEIGHT, STATUS, ERROR)
        pictures = zip(*(rows[name].to_pylist() for name in names), strict=True)
        posts = []
        for text, is_broken, (canvas, width, height, status, error) in zip(
            texts, broken, pictures, strict=True
        ):
            reasons = [error] if error else []
            if is_broken:
                reasons.append("the text is not valid UTF-8")
            has_picture = canvas is not None
            posts.append(
                PreparedPost(
                    post_id="",
                    text=text,
                    pixels=self._canvas(canvas) if has_picture else None,
                    letterbox=Letterbox(width, height, self._side) if has_picture else None,
                    image_status=status,
                    error="; ".join(reasons) or None,
                )
            )
        return posts, text_values(rows[self._columns.post_id])[0]

    def _canvas(self, canvas: bytes) -> np.ndarray[Any, np.dtype[np.uint8]]:
        return np.frombuffer(canvas, np.uint8).reshape(self._side, self._side, 3)

    def _table(
        self, rows: pa.Table, post_ids: Sequence[str | None], tagged: Sequence[TaggedPost]
    ) -> pa.Table:
        tags = pa.Table.from_pylist(
            [
                _row(post, self._tagger.model_id) | {"post_id": name}
                for post, name in zip(tagged, post_ids, strict=True)
            ],
            schema=tags_schema(),
        )
        passed = {entry.name: rows[entry.name].cast(entry.type) for entry in self._fields}
        columns = [passed[name] if name in passed else tags[name] for name in self._schema.names]
        return pa.Table.from_arrays(columns, schema=self._schema)

    def _warm_up_post(self) -> PreparedPost:
        canvas = np.zeros((self._side, self._side, 3), np.uint8)
        return PreparedPost("", "warm up", canvas, Letterbox(self._side, self._side, self._side), "ok")


def tag_each(tagger: Tagger, posts: Sequence[PreparedPost]) -> list[TaggedPost]:
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
    except torch.AcceleratorError:
        raise
    except Exception as error:
        if isinstance(error, torch.OutOfMemoryError):
            torch.cuda.empty_cache()
        if len(posts) == 1:
            return [_failed(posts[0], error)]
    middle = len(posts) // 2
    return [*tag_each(tagger, posts[:middle]), *tag_each(tagger, posts[middle:])]


def _failed(post: PreparedPost, error: Exception) -> TaggedPost:
    reason = f"the model raised {type(error).__name__}: {' '.join(str(error).split())[:300]}"
    failed = TaggedPost(
        post_id=post.post_id,
        image_width=post.letterbox.width if post.letterbox else None,
        image_height=post.letterbox.height if post.letterbox else None,
        image_status=post.image_status,
        error=f"{post.error}; {reason}" if post.error else reason,
    )
    return failed if post.text and post.text.strip() else replace(failed, text_status="empty")


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
            }
            for region in post.regions
        ],
        "existence": [{"type": kind, "score": score} for kind, score in post.existence],
        "image_width": post.image_width,
        "image_height": post.image_height,
        "image_status": post.image_status,
        "text_status": post.text_status,
        "error": post.error.encode("utf-8", "replace").decode() if post.error else None,
        "model_id": model_id,
    }
