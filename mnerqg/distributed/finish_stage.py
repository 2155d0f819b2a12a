"""The last stage of bulk tagging: what the model has found to rows of tags, in the Ray Data tasks that write them."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from itertools import islice
from typing import Any

import pyarrow as pa

from mnerqg.archive.counts import model_raised
from mnerqg.archive.reading import text_values
from mnerqg.config import DecodeConfig
from mnerqg.config_jobs import ColumnsConfig
from mnerqg.distributed.tag_metrics import TagMetrics
from mnerqg.inputs.images import Letterbox
from mnerqg.inputs.posts import merge_pictures
from mnerqg.inputs.prepared import PICTURES, ROW_ERROR, TEXTS, texts_from_arrow
from mnerqg.inputs.text import EncodedText
from mnerqg.inputs.windows import merge_windows
from mnerqg.model.decode import Decoder, Seen
from mnerqg.model.found import FOUND, Found
from mnerqg.schema import ROW_HASH, TaggedPost, tags_schema

Pictures = Sequence[dict[str, Any]]
"""Of one post, as `PICTURES` has them."""


@dataclass(frozen=True)
class FinishSettings:
    """What the rows of a run are made with.

    Attributes:
        columns: of the archive.
        pass_through: fields that are copied.
        several_pictures: whether the archive holds lists of pictures.
        decode: of the model; types: that it was asked for.
        side: of the canvases, pixels.
        model_id: of the model with its queries.
        run_id: the run that metrics are labelled with.
    """

    columns: ColumnsConfig
    pass_through: tuple[pa.Field, ...]
    several_pictures: bool
    decode: DecodeConfig
    types: tuple[str, ...]
    side: int
    model_id: str
    run_id: str

    @property
    def schema(self) -> pa.Schema:
        """Of every block and every file of the output."""
        return tags_schema(self.pass_through, several_pictures=self.several_pictures)


class FinishRows:
    """From the columns of the archive, `TEXTS`, `PICTURES`, `ROW_ERROR` and `FOUND` to rows of tags."""

    def __init__(self, settings: FinishSettings) -> None:
        self._settings = settings

    def __call__(self, rows: pa.Table) -> pa.Table:
        """One row for every row, whatever happens: rows that raise are halved, down to the one that does."""
        try:
            return self._finished(rows)
        except Exception as error:
            if rows.num_rows == 0:
                raise
            if rows.num_rows == 1:
                return self._failed(rows, error)
        middle = rows.num_rows // 2
        return pa.concat_tables([self(rows.slice(0, middle)), self(rows.slice(middle))])

    def _failed(self, rows: pa.Table, error: Exception) -> pa.Table:
        """A row about which nothing is known but what was raised."""
        pictures: list[Pictures] = rows[PICTURES].to_pylist()
        return self._table(rows, [_complete(TaggedPost(), pictures[0], model_raised(error))], pictures)

    def _finished(self, rows: pa.Table) -> pa.Table:
        settings = self._settings
        texts, _ = text_values(rows[settings.columns.text])
        windows = texts_from_arrow(rows[TEXTS], texts)
        pictures: list[Pictures] = rows[PICTURES].to_pylist()
        per_row, found, raised = Found.from_arrow(rows[FOUND].combine_chunks())
        seen = [view for post in zip(windows, pictures, strict=True) for view in self._views(*post)]
        decoder = Decoder(config=settings.decode, types=settings.types)
        answers = iter(zip(decoder(found, seen), raised, strict=True))
        tagged = [
            _complete(self._merged(decoder, list(islice(answers, number)), of_text, of_post), of_post, error)
            for number, of_text, of_post, error in zip(
                per_row.tolist(), windows, pictures, rows[ROW_ERROR].to_pylist(), strict=True
            )
        ]
        return self._table(rows, tagged, pictures)

    def _views(self, windows: Sequence[EncodedText], pictures: Pictures) -> list[Seen]:
        """In the order in which `Views` has them."""
        return [
            Seen(window, None if index is None else self._letterbox(pictures[index]))
            for index in _usable(pictures)
            for window in windows
        ]

    def _letterbox(self, picture: dict[str, Any]) -> Letterbox:
        return Letterbox(picture["width"], picture["height"], self._settings.side)

    def _merged(
        self,
        decoder: Decoder,
        answers: Sequence[tuple[TaggedPost, str | None]],
        windows: Sequence[EncodedText],
        pictures: Pictures,
    ) -> TaggedPost:
        """One post from the answers for each window beside each picture, and what the model raised about them."""
        indices = _usable(pictures)
        of_pictures = []
        for number in range(len(indices)):
            own = answers[number * len(windows) : (number + 1) * len(windows)]
            error = next((error for _, error in own if error), None)
            of_pictures.append(
                merge_windows([answer for answer, _ in own], windows, decoder.resolve)
                if error is None
                else TaggedPost(error=error, text_status="empty" if windows[0].status == "empty" else "ok")
            )
        return merge_pictures(of_pictures, [index or 0 for index in indices])

    def _table(
        self, rows: pa.Table, tagged: Sequence[TaggedPost], pictures: Sequence[Sequence[dict[str, Any]]]
    ) -> pa.Table:
        settings = self._settings
        post_ids = text_values(rows[settings.columns.post_id])[0]
        tags = pa.Table.from_pylist(
            [
                _row(post, settings.model_id)
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
        table = pa.Table.from_arrays(columns, schema=settings.schema)
        _metrics(settings.run_id).count(tagged, pictures)
        return table


_PICTURE_FIELDS = ("status", "width", "height", "error")


@cache
def _metrics(run_id: str) -> TagMetrics:
    """Once a process, whose tasks are many."""
    return TagMetrics(run_id)


def _usable(pictures: Sequence[dict[str, Any]]) -> list[int | None]:
    """The places of a post's usable pictures; one None where the text is all there is."""
    usable = [index for index, picture in enumerate(pictures) if picture["status"] == "ok"]
    return list(usable) or [None]


def _complete(post: TaggedPost, pictures: Sequence[dict[str, Any]], error: str | None) -> TaggedPost:
    """The post with what became of its pictures, and every error of the row in one line."""
    messages = [
        f"picture {index}: {picture['error']}" if len(pictures) > 1 else picture["error"]
        for index, picture in enumerate(pictures)
        if picture["error"]
    ]
    messages += [one for one in (error, post.error) if one]
    shown = next((one for one in pictures if one["status"] == "ok"), pictures[0] if pictures else None)
    return replace(
        post,
        image_status=shown["status"] if shown else "none",
        image_width=shown["width"] if shown else None,
        image_height=shown["height"] if shown else None,
        error="; ".join(messages) or None,
    )


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
