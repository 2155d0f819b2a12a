"""What a tagging run is to do, checked before it begins; nothing is written.

A cluster is asked for only where much of the archive has to be read through (`sources.work_in_tasks`).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from mnerqg.archive import run as tag_run
from mnerqg.archive.reading import Archive, open_archive
from mnerqg.config import Config
from mnerqg.config_jobs import PicturesConfig, TagConfig
from mnerqg.distributed.sources import work_in_tasks
from mnerqg.errors import ModelError, StorageError
from mnerqg.inputs.text import TextEncoderSource
from mnerqg.io import storage
from mnerqg.io.picture_places import with_absolute_roots
from mnerqg.model.files import check_model
from mnerqg.queries import EntityQuery, asked_queries


@dataclass(frozen=True)
class RunState:
    """What lies at an output: nothing (no run_id), an unfinished run, or a finished one with its manifest."""

    run_id: str | None = None
    manifest: dict[str, Any] | None = None


@dataclass(frozen=True)
class TagPlan:
    """A run that has passed every check that needs no cluster. All URIs are absolute."""

    config: TagConfig
    model: str
    model_id: str
    model_config: Config
    text_encoder: TextEncoderSource
    queries: tuple[EntityQuery, ...]
    archive: Archive
    output: str
    pictures: PicturesConfig
    asked: dict[str, Any]
    state: RunState
    restart: bool = False
    base: str | None = None

    @property
    def side(self) -> int:
        """Of the canvases, pixels."""
        return self.model_config.model.image_side

    @property
    def windows(self) -> int:
        """How many windows of a text are read at most; FA-VG reads no text."""
        return self.config.windows if self.model_config.model.inputs != "picture" else 1

    @property
    def request(self) -> dict[str, Any]:
        """What was asked for, as the run's directory keeps it."""
        return {
            "model": self.model,
            "model_id": self.model_id,
            "input": list(self.archive.uris),
            "input_files": len(self.archive.files),
            "output": self.output,
            "retry_of": self.base,
            "config": self.config.model_dump(mode="json"),
        }


def plan_tagging(
    config: TagConfig,
    model: str,
    archive: str | Sequence[str],
    output: str,
    *,
    restart: bool = False,
    retry_failed: str | None = None,
    skip_damaged: bool = False,
) -> TagPlan:
    """Check model, archive and output; nothing is written.

    Args:
        config: settings of the run.
        model: URI of a model directory.
        archive: URI of the archive's file, folder or glob; or several, which are one archive.
        output: URI of a directory: a new one, or that of an earlier call with the same arguments.
        restart: start over where an unfinished run lies; a finished one is never touched.
        retry_failed: URI of a complete run of the same model and archive: only its rows whose pictures failed
            for a passing reason are tagged again, the others are taken over.
        skip_damaged: leave damaged files of the archive out in the place of refusing them.

    Raises:
        ModelError, StorageError, DataError, ConfigError: one of them is not what it should be.
    """
    model, output = storage.absolute(model), storage.absolute(output)
    uris = [storage.absolute(uri) for uri in ([archive] if isinstance(archive, str) else archive)]
    base = storage.absolute(retry_failed) if retry_failed else None
    files = check_model(model, asked_queries(config.queries))
    if files.config.model.picture == "region":
        raise ModelError(
            f"{model} is the second of two stages (model.picture is region): it needs another model's boxes, "
            "which an archive does not have; tag with a model whose model.picture is whole"
        )
    opened = open_archive(uris, config.columns, work_in_tasks, skip_damaged=skip_damaged)
    _check_place(output, opened, base)
    pictures = with_absolute_roots(config.pictures, opened.folders)
    settings = {
        "columns": config.columns.model_dump(mode="json"),
        "long_texts": config.long_texts if config.windows == 1 else f"up to {config.windows} windows",
        "pictures": {
            "roots": pictures.roots,
            "schemes": pictures.schemes,
            "max_bytes": pictures.max_bytes,
            "max_pixels": pictures.max_pixels,
            "max_per_post": pictures.max_per_post,
            "formats": pictures.formats,
        },
    }
    asked = tag_run.asked(files.model_id, opened, settings, base)
    if base is not None:
        tag_run.check_base(base, asked)
    storage.check_writable(output)
    folder = tag_run.tags_folder(output)
    folder.check(asked, restart=restart)
    return TagPlan(
        config=config,
        model=model,
        model_id=files.model_id,
        model_config=files.config,
        text_encoder=files.text_encoder,
        queries=files.queries,
        archive=opened,
        output=output,
        pictures=pictures,
        asked=asked,
        state=RunState((folder.begun() or {}).get("run_id"), folder.result()),
        restart=restart,
        base=base,
    )


def _check_place(output: str, archive: Archive, base: str | None) -> None:
    for uri in archive.uris:
        folder = uri.partition("**")[0].rstrip("/")
        if (uri in archive.folders or "**" in uri) and f"{output}/".startswith(f"{folder}/"):
            raise StorageError(
                f"--output {output} lies in the archive {uri}, where the next run would take "
                "the tags for posts; choose another folder"
            )
    if base == output:
        raise StorageError(
            f"--output {output} is the run to repair itself, which stays as it is; choose another folder"
        )
