"""Bulk tagging of an archive of posts on Ray Data (DESIGN §6).

    read_parquet -> FetchPictures (tasks) -> DecodePictures (tasks) -> TagPosts (actors) -> write_parquet

`plan_tagging` looks at everything that can be wrong beforehand and needs no cluster; `tag_archive` does the
work. What a run leaves under its output:

    _run.json        what was asked for, from the start on
    *.parquet        the tags, one row for every post of the archive
    _manifest.json   files, rows, counts by status and type, time; only of a finished run
    _SUCCESS         empty, written last

Readers of Parquet (DuckDB, Spark, pandas, Ray) leave out names that begin with `_`.
"""

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import pyarrow as pa
import ray
import ray.data

from mnerqg import storage
from mnerqg.checkpoint import check_model
from mnerqg.config import TagConfig
from mnerqg.data.archive import Archive, open_archive
from mnerqg.data.images import ImageLimits
from mnerqg.data.tags import TagCounts, count_rows, count_tags
from mnerqg.distributed.picture_stages import DecodePictures, FetchPictures
from mnerqg.distributed.tag_stages import CHUNK_BATCHES, TagPosts
from mnerqg.errors import ConfigError, RunError, StorageError
from mnerqg.pictures import PicturePolicy
from mnerqg.schema import tags_schema
from mnerqg.tagger import Tagger

RUN_FILE = "_run.json"
MANIFEST_FILE = "_manifest.json"
SUCCESS_FILE = "_SUCCESS"

_SMALL_CLUSTER_CPUS = 4
_FETCH_BATCH = 64  # posts; bounds the encoded pictures that one task holds at a time
_DECODE_BATCH = 32


@dataclass(frozen=True)
class TagPlan:
    """A run that has passed every check that needs no cluster. All URIs are absolute."""

    config: TagConfig
    model: str
    model_id: str
    side: int
    archive: Archive
    output: str
    policy: PicturePolicy

    @property
    def schema(self) -> pa.Schema:
        """Of every file of the output."""
        return tags_schema(list(self.archive.pass_through))


@dataclass(frozen=True)
class Resources:
    """What the stages take of the cluster."""

    min_actors: int
    max_actors: int
    gpus_per_actor: float
    cpus_per_actor: float
    threads_per_actor: int
    cpus_per_task: float
    cluster_cpus: float


def plan_tagging(config: TagConfig, model: str, archive: str, output: str) -> TagPlan:
    """Check model, archive and output and claim the output.

    Args:
        config: settings of the run.
        model: URI of a model directory.
        archive: URI of a Parquet file or of a directory of them.
        output: URI of a new or empty directory.

    Raises:
        ModelError, StorageError, DataError: one of them is not what it should be.
    """
    model, archive, output = (storage.absolute(uri) for uri in (model, archive, output))
    files = check_model(model)
    opened = open_archive(archive, config.columns)
    _check_output(output, opened)
    plan = TagPlan(
        config=config,
        model=model,
        model_id=files.model_id,
        side=files.config.model.image_side,
        archive=opened,
        output=output,
        policy=_policy(config, opened.folder),
    )
    run = {
        "model": model,
        "model_id": plan.model_id,
        "input": archive,
        "rows": opened.rows,
        "config": config.model_dump(mode="json"),
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    storage.write_text(storage.join(output, RUN_FILE), json.dumps(run, indent=2) + "\n")
    return plan


def _check_output(output: str, archive: Archive) -> None:
    if (
        f"{output.rstrip('/')}/".startswith(f"{archive.folder.rstrip('/')}/")
        and archive.uri == archive.folder
    ):
        raise StorageError(
            f"--output {output} lies in the archive {archive.uri}, where the next run would take "
            "the tags for posts; choose another folder"
        )
    if not storage.exists(output):
        return
    if storage.exists(storage.join(output, SUCCESS_FILE)):
        raise StorageError(f"--output {output} holds a finished run; choose another folder or empty it")
    if storage.list_files(output):
        raise StorageError(f"--output {output} holds files already; choose another folder or empty it")


def _policy(config: TagConfig, archive_folder: str) -> PicturePolicy:
    pictures = config.pictures
    roots = tuple(
        root if storage.scheme_of(root) in ("http", "https") else storage.absolute(root)
        for root in pictures.roots
    )
    return PicturePolicy(
        roots=roots or (archive_folder,),
        schemes=pictures.schemes,
        max_bytes=pictures.max_bytes,
        concurrency=pictures.concurrency,
        attempts=pictures.attempts,
        timeout_s=pictures.timeout_s,
    )


def tag_archive(plan: TagPlan, load_tagger: Callable[[str], Tagger] = Tagger.load) -> dict[str, Any]:
    """Tag the archive on the running cluster and return the manifest.

    Args:
        plan: from `plan_tagging`.
        load_tagger: makes an actor's tagger from the model's URI; for a `Tagger` of one's own.

    Raises:
        ConfigError: the cluster is too small for the stages.
        RunError: the run failed, or rows out are not rows in; nothing is marked as finished.
    """
    resources = plan_resources(plan.config, ray.cluster_resources())
    _set_context(plan.config, resources)
    started = time.monotonic()
    filesystem, path = storage.filesystem(plan.output)
    try:
        _pipeline(plan, resources, load_tagger).write_parquet(
            path,
            filesystem=filesystem,
            schema=plan.schema,
            compression="zstd",
            mode="append",
            min_rows_per_file=plan.config.min_rows_per_file,
            max_rows_per_file=plan.config.max_rows_per_file,
            ray_remote_args={"num_cpus": resources.cpus_per_task},
        )
    except Exception as error:  # Ray raises its own, pyarrow's and, disguised, the stages' errors
        raise RunError(
            f"tagging failed: {_reason(error)}; empty {plan.output} and run the same command again"
        ) from error
    return _finish(plan, time.monotonic() - started)


def plan_resources(config: TagConfig, cluster: dict[str, float]) -> Resources:
    """Fill in what the configuration leaves open.

    Args:
        config: settings of the run.
        cluster: totals as `ray.cluster_resources` gives them.

    Raises:
        ConfigError: not enough CPUs or GPUs for the smallest number of actors and one task beside them.
    """
    cpus, gpus = cluster.get("CPU", 0.0), cluster.get("GPU", 0.0)
    gpus_per_actor = (1.0 if gpus else 0.0) if config.gpus_per_actor is None else config.gpus_per_actor
    cpus_per_actor = config.cpus_per_actor or (1.0 if cpus > 2 else 0.5)
    if isinstance(config.actors, tuple):
        min_actors, max_actors = config.actors
    elif config.actors is not None:
        min_actors = max_actors = config.actors
    else:
        min_actors = 1
        max_actors = max(1, int(gpus / gpus_per_actor if gpus_per_actor else cpus / 2 / cpus_per_actor))
        if not gpus_per_actor and cpus <= _SMALL_CLUSTER_CPUS:
            max_actors = 1  # one actor with all threads does as much as several, in less memory
    threads = max(1, int(cpus_per_actor))
    if not gpus_per_actor and cpus <= _SMALL_CLUSTER_CPUS:
        threads = max(1, int(cpus / max_actors))
    resources = Resources(
        min_actors=min_actors,
        max_actors=max_actors,
        gpus_per_actor=gpus_per_actor,
        cpus_per_actor=cpus_per_actor,
        threads_per_actor=config.threads_per_actor or threads,
        cpus_per_task=1.0 if cpus > 2 else 0.5,
        cluster_cpus=cpus,
    )
    if not config.autoscaling:
        _check_resources(resources, gpus)
    return resources


def _check_resources(resources: Resources, cluster_gpus: float) -> None:
    """Without a CPU beside the actors nothing would be read, and the run would wait for ever."""
    # Ray's own tasks (listing files, cutting blocks) take a whole CPU, whatever ours take.
    needed = resources.min_actors * resources.cpus_per_actor + 1
    if needed > resources.cluster_cpus:
        raise ConfigError(
            f"the cluster has {resources.cluster_cpus:g} CPUs, but {resources.min_actors} actor(s) with "
            f"{resources.cpus_per_actor:g} each and a task beside them take {needed:g}; lower --actors or "
            "--cpus_per_actor, add nodes, or set --autoscaling true where the cluster grows by itself"
        )
    needed_gpus = resources.min_actors * resources.gpus_per_actor
    if needed_gpus > cluster_gpus:
        raise ConfigError(
            f"the cluster has {cluster_gpus:g} GPUs, but {resources.min_actors} actor(s) take "
            f"{needed_gpus:g}; lower --actors or --gpus_per_actor (0 tags on CPUs), or set --autoscaling true"
        )


def _set_context(config: TagConfig, resources: Resources) -> None:
    """All settings of Ray Data that tagging relies on."""
    context = ray.data.DataContext.get_current()
    context.target_max_block_size = config.block_bytes
    # A lost row must fail the run: one bad row would otherwise take its whole block with it.
    context.max_errored_blocks = 0
    context.actor_init_retry_on_errors = True
    context.enable_progress_bars = True
    if resources.cluster_cpus <= _SMALL_CLUSTER_CPUS:
        # Reserved shares of so few CPUs leave some of them idle.
        context.op_resource_reservation_enabled = False


def _pipeline(plan: TagPlan, resources: Resources, load_tagger: Callable[[str], Tagger]) -> ray.data.Dataset:
    config, columns, archive = plan.config, plan.config.columns, plan.archive
    task_cpus = resources.cpus_per_task
    paths = [storage.filesystem(entry.uri)[1] for entry in archive.files]
    filesystem, _ = storage.filesystem(archive.uri)
    names = [columns.post_id, columns.text, *columns.pass_through]
    if archive.pictures != "none":
        names.append(columns.image if archive.pictures == "bytes" else columns.image_uri)
    posts = ray.data.read_parquet(
        paths, filesystem=filesystem, partitioning=None, file_extensions=None, num_cpus=task_cpus
    ).select_columns(list(dict.fromkeys(names)))
    # A row group of a million short posts would be the work of one task: cut it to what fills a block with
    # canvases, and an archive of few posts into a piece or two a CPU.
    rows = min(
        config.block_bytes // (3 * plan.side**2), archive.rows // (2 * max(1, int(resources.cluster_cpus)))
    )
    posts = posts.repartition(target_num_rows_per_block=max(rows, config.batch_posts))
    if archive.pictures == "uris":
        posts = posts.map_batches(
            FetchPictures(columns, plan.policy),
            batch_format="pyarrow",
            batch_size=_FETCH_BATCH,
            num_cpus=task_cpus / 2,  # it mostly waits
            udf_modifying_row_count=False,
        )
    # Where the actors have no GPU and a task's CPUs, Ray fuses this stage into them: nothing is lost, since both
    # then compete for the same CPUs, and the canvases need not travel.
    limits = ImageLimits(max_bytes=config.pictures.max_bytes, max_pixels=config.pictures.max_pixels)
    decoded = posts.map_batches(
        DecodePictures(columns, plan.side, limits),
        batch_format="pyarrow",
        batch_size=_DECODE_BATCH,
        num_cpus=task_cpus,
        udf_modifying_row_count=False,
    )
    return decoded.map_batches(
        TagPosts,
        fn_constructor_args=(
            load_tagger,
            plan.model,
            columns,
            archive.pass_through,
            config.batch_posts,
            resources.threads_per_actor,
        ),
        batch_format="pyarrow",
        batch_size=config.batch_posts * CHUNK_BATCHES,
        # Two calls overlap the transfer of blocks; Ray still runs the model itself one call at a time.
        compute=ray.data.ActorPoolStrategy(
            min_size=resources.min_actors,
            max_size=resources.max_actors,
            max_concurrent_calls_per_actor=2,
        ),
        num_cpus=resources.cpus_per_actor,
        num_gpus=resources.gpus_per_actor,
        udf_modifying_row_count=False,
    )


def _finish(plan: TagPlan, seconds: float) -> dict[str, Any]:
    """Read back what was written and, if it is complete, mark the run as finished."""
    try:
        files = storage.list_files(plan.output, ".parquet")
    except StorageError:
        files = []
    counts = count_tags(files)
    if counts.rows != plan.archive.rows:
        raise RunError(
            f"{plan.output} holds {counts.rows:,} rows for the {plan.archive.rows:,} posts of "
            f"{plan.archive.uri}; the run is not marked as finished: empty the folder and run it again"
        )
    manifest = _manifest(plan, files, counts, seconds)
    storage.write_text(storage.join(plan.output, MANIFEST_FILE), json.dumps(manifest, indent=2) + "\n")
    storage.write_bytes(storage.join(plan.output, SUCCESS_FILE), b"")
    return manifest


def _manifest(
    plan: TagPlan, files: list[storage.FileEntry], counts: TagCounts, seconds: float
) -> dict[str, Any]:
    return {
        "model": plan.model,
        "model_id": plan.model_id,
        "input": plan.archive.uri,
        "input_files": len(plan.archive.files),
        "output": plan.output,
        "rows": counts.rows,
        "rows_with_error": counts.errors,
        "image_status": dict(counts.image_status),
        "text_status": dict(counts.text_status),
        "entities": dict(sorted(counts.entities.items())),
        "regions": dict(sorted(counts.regions.items())),
        "seconds": round(seconds, 1),
        "rows_per_second": round(counts.rows / seconds, 1),
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
        "files": [
            {"name": entry.uri.rsplit("/", 1)[-1], "rows": count_rows(entry), "bytes": entry.size}
            for entry in files
        ],
    }


def _reason(error: BaseException) -> str:
    """The innermost cause in one line: Ray wraps the stages' errors, traceback and all."""
    while (cause := getattr(error, "cause", None) or error.__cause__) is not None:
        error = cause
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[-1][:300]}" if lines else type(error).__name__
