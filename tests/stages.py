"""The stages of tagging one after the other in this process, as Ray runs them on blocks of rows."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from mnerqg.config_jobs import ColumnsConfig, PicturesConfig, TagConfig
from mnerqg.distributed.finish_stage import FinishRows, FinishSettings
from mnerqg.distributed.picture_stages import DecodePictures, FetchPictures
from mnerqg.distributed.tag_monitor import ActorReport
from mnerqg.distributed.tagging_stages import ModelSettings, TagPosts
from mnerqg.distributed.text_stage import EncodeTexts
from mnerqg.model.files import check_model
from mnerqg.schema import ROW_HASH


class Stages:
    """Of a model directory, with a tagger in the place of its own.

    `reports` are those of the model actor.
    """

    def __init__(
        self, model: Path, tagger: Any, *, pictures: PicturesConfig | None = None, **settings: Any
    ) -> None:
        files = check_model(str(model))
        columns = ColumnsConfig()
        config = TagConfig(**settings)
        side = files.config.model.image_side
        self.reports: list[ActorReport] = []
        fetch = [] if pictures is None else [FetchPictures(columns, "image_uri", pictures)]
        self.actor = TagPosts(
            ModelSettings(
                model=str(model),
                queries=files.queries,
                side=side,
                batch_posts=config.batch_posts,
                device="cpu",
                threads=1,
                precision=None,
                compiled=False,
                run_id="a run",
            ),
            lambda _: tagger,
            self.reports.append,
        )
        self._stages = [
            *fetch,
            EncodeTexts(columns, files.text_encoder, config.windows),
            DecodePictures(columns, side, pictures or PicturesConfig()),
            self.actor,
            FinishRows(
                FinishSettings(
                    columns=columns,
                    pass_through=(),
                    several_pictures=False,
                    decode=files.config.decode,
                    types=tuple(query.type for query in files.queries),
                    side=side,
                    model_id=files.model_id,
                    run_id="a run",
                )
            ),
        ]

    def __call__(self, rows: pa.Table) -> list[dict[str, Any]]:
        """Rows of an archive with `post_id`, `text` and `image_uri` or `image` to rows of tags."""
        rows = rows.append_column(ROW_HASH, pa.array(range(rows.num_rows), pa.uint64()))
        for stage in self._stages:
            rows = stage(rows)
        return rows.to_pylist()


def texts_table(texts: Sequence[str | None]) -> pa.Table:
    """An archive without pictures."""
    return pa.table({"post_id": pa.array(map(str, range(len(texts)))), "text": pa.array(texts, pa.string())})
