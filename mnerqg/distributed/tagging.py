"""Bulk tagging of an archive of posts on Ray Data (DESIGN §6).

    read -> (SelectRows) -> FetchPictures -> DecodePictures (tasks) -> TagPosts (actors) -> write_parquet

`plan_tagging` looks at everything that can be wrong beforehand, changes nothing and needs no cluster;
`tag_archive` does the work. `mnerqg.archive.run` says what lies in the output, what of it is safe when a run
dies, and when it is finished.
"""

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import ray
import ray.data
from ray.data.checkpoint import CheckpointConfig, CheckpointManager

from mnerqg.archive import run as tag_run
from mnerqg.archive.reading import Archive, open_archive
from mnerqg.archive.run import RowHashes, RunIdentity, RunState
from mnerqg.config import PicturesConfig, TagConfig
from mnerqg.distributed.failures import first_cause
from mnerqg.distributed.jsonlines_source import read_json_lines
from mnerqg.distributed.picture_stages import DecodePictures, FetchPictures
from mnerqg.distributed.short_queues import bound_queues
from mnerqg.distributed.tag_monitor import Report, only_run
from mnerqg.distributed.tagging_resources import Resources, plan_resources
from mnerqg.distributed.tagging_stages import CHUNK_BATCHES, TagPosts, TagSettings
from mnerqg.errors import ModelError, RunError, StorageError
from mnerqg.io import storage
from mnerqg.io.lock import locked
from mnerqg.io.picture_store import check_roots
from mnerqg.model.files import check_model
from mnerqg.queries import EntityQuery, load_queries
from mnerqg.schema import ROW_HASH

if TYPE_CHECKING:
    from mnerqg.tagger import Tagger

_FETCH_BATCH = 64  # posts; bounds the encoded pictures that one task holds at a time
_DECODE_BATCH = 32

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class TagPlan:
    """A run that has passed every check that needs no cluster. All URIs are absolute."""

    config: TagConfig
    model: str
    model_id: str
    queries: tuple[EntityQuery, ...]
    side: int
    archive: Archive
    output: str
    pictures: PicturesConfig
    identity: RunIdentity
    state: RunState
    restart: bool = False

    @property
    def request(self) -> dict[str, Any]:
        """What was asked for, as the run's directory keeps it."""
        return {
            "model": self.model,
            "model_id": self.model_id,
            "input": self.archive.uri,
            "input_files": len(self.archive.files),
            "output": self.output,
            "retry_of": self.identity.base,
            "config": self.config.model_dump(mode="json"),
        }


def plan_tagging(
    config: TagConfig,
    model: str,
    archive: str,
    output: str,
    *,
    restart: bool = False,
    retry_failed: str | None = None,
) -> TagPlan:
    """Check model, archive and output; nothing is written.

    Args:
        config: settings of the run.
        model: URI of a model directory.
        archive: URI of the archive's file, folder or glob.
        output: URI of a directory: a new one, or that of an earlier call with the same arguments.
        restart: start over where an unfinished run lies; a finished one is never touched.
        retry_failed: URI of a complete run of the same model and archive: only its rows whose pictures failed
            for a passing reason are tagged again, the others are taken over.

    Raises:
        ModelError, StorageError, DataError, ConfigError: one of them is not what it should be.
    """
    model, archive, output = (storage.absolute(uri) for uri in (model, archive, output))
    base = storage.absolute(retry_failed) if retry_failed else None
    files = check_model(model, load_queries(config.queries) if config.queries is not None else None)
    if files.config.model.picture == "region":
        raise ModelError(
            f"{model} is the second of two stages (model.picture is region): it needs another model's boxes, "
            "which an archive does not have; tag with a model whose model.picture is whole"
        )
    opened = open_archive(archive, config.columns)
    _check_place(output, opened, base)
    pictures = _pictures(config.pictures, opened.folder)
    settings = {
        "columns": config.columns.model_dump(mode="json"),
        "roots": pictures.roots,
        "schemes": pictures.schemes,
        "max_bytes": pictures.max_bytes,
        "max_pixels": pictures.max_pixels,
        "max_per_post": pictures.max_per_post,
    }
    identity = tag_run.identify(files.model_id, opened, settings, base)
    if base is not None:
        tag_run.check_base(base, identity)
    storage.check_writable(output)
    state = tag_run.read_state(output)
    tag_run.check_state(output, state, identity, restart=restart)
    return TagPlan(
        config=config,
        model=model,
        model_id=files.model_id,
        queries=files.queries,
        side=files.config.model.image_side,
        archive=opened,
        output=output,
        pictures=pictures,
        identity=identity,
        state=state,
        restart=restart,
    )


def _check_place(output: str, archive: Archive, base: str | None) -> None:
    inside = f"{output.rstrip('/')}/".startswith(f"{archive.folder.rstrip('/')}/")
    if inside and (archive.uri == archive.folder or "**" in archive.uri):
        raise StorageError(
            f"--output {output} lies in the archive {archive.uri}, where the next run would take "
            "the tags for posts; choose another folder"
        )
    if base is not None and base.rstrip("/") == output.rstrip("/"):
        raise StorageError(
            f"--output {output} is the run to repair itself, which stays as it is; choose another folder"
        )


def _pictures(config: PicturesConfig, archive_folder: str) -> PicturesConfig:
    """The settings with absolute roots; without any, pictures lie in the archive's own folder."""
    roots = tuple(
        root if storage.scheme_of(root) in ("http", "https") else storage.absolute(root)
        for root in config.roots
    )
    check_roots(roots)
    return config.model_copy(update={"roots": roots or (archive_folder,)})


def tag_archive(plan: TagPlan, load_tagger: "Callable[[str], Tagger] | None" = None) -> dict[str, Any]:
    """Tag the archive on the running cluster and return the manifest.

    Whatever ends it, the same call goes on where it stopped. A finished run's tags are left as they are. Where another
    job takes the output over, since this process stood still for a minute, it ends the process.

    Args:
        plan: from `plan_tagging`.
        load_tagger: makes an actor's tagger from the model's URI; None is `Tagger.load`.

    Raises:
        ConfigError: the cluster is too small for the stages.
        StorageError: the output cannot be read or written.
        RunError: another job is writing there, the run failed, rows out are not rows in, or too many pictures failed;
            nothing is marked as finished.
    """
    if plan.state.manifest is not None:
        tag_run.tidy(plan.output)  # the death may have come between the mark and that
        return plan.state.manifest
    resources = plan_resources(plan.config, ray.cluster_resources())
    here = ray.get_runtime_context().get_node_id()
    with (
        only_run(plan.output) as monitor,
        locked(plan.output, here, is_known=_is_of_this_cluster),
    ):
        state = tag_run.read_state(plan.output)
        if state.manifest is not None and state.identity == plan.identity:
            tag_run.tidy(plan.output)
            return state.manifest  # another job has finished it since it was planned
        run_id = tag_run.claim(plan.output, plan.identity, plan.request, restart=plan.restart)
        done = tag_run.reconcile(plan.output)
        wanted = tag_run.retryable_rows(plan.identity.base) if plan.identity.base else None
        rows = (plan.archive.rows if wanted is None else len(wanted)) - len(done)
        logger.info(
            "run %s: %s posts to tag, %s done before, into %s",
            run_id,
            f"{rows:,}",
            f"{len(done):,}",
            plan.output,
        )
        started = time.monotonic()
        if rows:
            try:
                _write(plan, resources, _Job(run_id, done, wanted, load_tagger, Report(monitor)))
            except Exception as error:  # Ray raises its own, pyarrow's and, disguised, the stages' errors
                raise RunError(
                    f"run {run_id}: tagging failed: {first_cause(error)}; what is written is safe: run the same "
                    "command again"
                ) from error
            tag_run.reconcile(plan.output)  # what workers of a dead driver still wrote after the first time
        seconds = time.monotonic() - started
        busy, ready = ray.get(monitor.totals.remote())
        if plan.identity.base is not None:
            tag_run.take_over(plan.identity.base, plan.output)
        facts = {
            "run_id": run_id,
            **plan.request,
            "rows_this_time": rows,
            "seconds": round(seconds, 1),
            "rows_per_second": round(rows / max(seconds, 1e-3), 1),
            "model_busy": round(busy / ready, 3) if ready else None,
        }
        return tag_run.finish(plan.output, plan.identity, facts, max_failed=plan.config.max_failed)


def _is_of_this_cluster(node: str) -> bool:
    return any(known["NodeID"] == node for known in ray.nodes())


@dataclass(frozen=True)
class _Job:
    """One attempt at a run. `done` rows are left out; of the others only the `wanted` ones, where given."""

    run_id: str
    done: RowHashes
    wanted: RowHashes | None
    load_tagger: "Callable[[str], Tagger] | None"
    report: Report


class _OwnSelection(CheckpointManager):
    """Keeps Ray from filtering on resume: `SelectRows` does.

    Ray's filter is an actor pool that takes a whole CPU and 1 GiB of memory from the start on: on a small
    cluster whose CPUs the model actors fill, a resumed run would wait for ever.
    """

    def load_checkpoint(self, *_: Any, **__: Any) -> tuple[None, int]:
        return None, 0


class SelectRows:
    """Drops the rows that are done, and all but the wanted ones. Both are sorted arrays in the object store."""

    def __init__(self, done: Any, wanted: Any | None) -> None:
        self._done = done
        self._wanted = wanted

    def __call__(self, rows: Any) -> Any:
        ids = rows[ROW_HASH].to_numpy()
        mask = ~_contains(ray.get(self._done), ids)
        if self._wanted is not None:
            mask &= _contains(ray.get(self._wanted), ids)
        return rows.filter(mask)


def _contains(sorted_ids: RowHashes, ids: RowHashes) -> Any:
    places = np.searchsorted(sorted_ids, ids)
    found = np.zeros(len(ids), bool)
    inside = places < len(sorted_ids)
    found[inside] = sorted_ids[places[inside]] == ids[inside]
    return found


def _write(plan: TagPlan, resources: Resources, job: _Job) -> None:
    config, columns = plan.config, plan.config.columns
    filesystem, path = storage.filesystem(plan.output)
    rows_per_file = config.min_rows_per_file or min(max(plan.archive.rows // 32, 1_000), 20_000)
    rows_per_file = min(rows_per_file, config.max_rows_per_file)
    with ray.data.DataContext.current(_context(resources, filesystem, path)):
        tags = _pipeline(plan, resources, job)
        # Ray's own bound on the rows of a file is not for partitioned writes; there a block is a write.
        if columns.partition_by:
            tags = tags.repartition(target_num_rows_per_block=rows_per_file)
        tags.set_name(f"tag-{job.run_id}")
        tags.write_parquet(
            path,
            filesystem=filesystem,
            schema=_settings(plan, resources, job).schema,
            compression="zstd",
            mode="append",
            partition_cols=list(columns.partition_by) or None,
            min_rows_per_file=None if columns.partition_by else rows_per_file,
            max_rows_per_file=config.max_rows_per_file,
            ray_remote_args={"num_cpus": resources.cpus_per_task},
        )


def _context(resources: Resources, filesystem: Any, path: str) -> ray.data.DataContext:
    """All settings of Ray Data that tagging relies on."""
    context = ray.data.DataContext.get_current().copy()
    context.target_max_block_size = resources.block_bytes
    # A lost row must fail the run: one bad row would otherwise take its whole block with it.
    context.max_errored_blocks = 0
    context.actor_init_retry_on_errors = True
    context.max_consecutive_actor_init_deaths = 5
    context.enable_progress_bars = True
    if resources.small:
        # Reserved shares of so few CPUs leave some of them idle.
        context.op_resource_reservation_enabled = False
    bound_queues(context)
    context.checkpoint_config = CheckpointConfig(
        id_column=ROW_HASH,
        checkpoint_path=f"{path}/{tag_run.CHECKPOINT_FOLDER}",
        delete_checkpoint_on_success=False,
        override_filesystem=filesystem,
        checkpoint_manager_cls=_OwnSelection,
    )
    return context


def _settings(plan: TagPlan, resources: Resources, job: _Job) -> TagSettings:
    return TagSettings(
        model=plan.model,
        queries=plan.queries,
        columns=plan.config.columns,
        pass_through=plan.archive.pass_through,
        several_pictures=plan.archive.pictures == "lists",
        batch_posts=plan.config.batch_posts,
        device="cuda" if resources.gpus_per_actor else "cpu",
        threads=resources.threads_per_actor,
        run_id=job.run_id,
    )


def _pipeline(plan: TagPlan, resources: Resources, job: _Job) -> ray.data.Dataset:
    config, columns, archive = plan.config, plan.config.columns, plan.archive
    task_cpus = resources.cpus_per_task
    posts = _read(plan, task_cpus)
    if len(job.done) or job.wanted is not None:
        wanted = None if job.wanted is None else ray.put(job.wanted)
        posts = posts.map_batches(
            SelectRows(ray.put(job.done), wanted), batch_format="pyarrow", batch_size=None, num_cpus=task_cpus
        )
    # A row group of a million short posts would be the work of one task: cut it to what fills a block with
    # canvases, and an archive of few posts into a piece or two a CPU.
    rows = min(
        resources.block_bytes // (3 * plan.side**2), archive.rows // (2 * max(1, int(resources.cluster_cpus)))
    )
    posts = posts.repartition(target_num_rows_per_block=max(rows, config.batch_posts))
    if archive.pictures in ("uris", "lists"):
        uris = columns.image_uri if archive.pictures == "uris" else columns.image_uris
        posts = posts.map_batches(
            FetchPictures(columns, uris, plan.pictures),
            batch_format="pyarrow",
            batch_size=_FETCH_BATCH,
            num_cpus=task_cpus / 2,  # it mostly waits
            udf_modifying_row_count=False,
        )
    # Where the actors have no GPU and a task's CPUs, Ray fuses this stage into them: nothing is lost, since both
    # then compete for the same CPUs, and the canvases need not travel.
    decoded = posts.map_batches(
        DecodePictures(columns, plan.side, plan.pictures),
        batch_format="pyarrow",
        batch_size=_DECODE_BATCH,
        num_cpus=task_cpus,
        udf_modifying_row_count=False,
    )
    return decoded.map_batches(
        TagPosts,
        fn_constructor_args=(_settings(plan, resources, job), job.load_tagger, job.report),
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


def _read(plan: TagPlan, task_cpus: float) -> ray.data.Dataset:
    columns, archive = plan.config.columns, plan.archive
    if archive.format == "jsonl":
        return read_json_lines(archive, num_cpus=task_cpus)
    names = [columns.post_id, columns.text, *columns.pass_through, ROW_HASH]
    pictures = {"bytes": columns.image, "uris": columns.image_uri, "lists": columns.image_uris}
    if archive.pictures != "none":
        names.append(pictures[archive.pictures])
    filesystem, _ = storage.filesystem(archive.folder)
    return ray.data.read_parquet(
        [storage.path_of(entry.uri) for entry in archive.files],
        filesystem=filesystem,
        partitioning=None,
        file_extensions=None,
        include_row_hash=True,
        num_cpus=task_cpus,
    ).select_columns(list(dict.fromkeys(names)))
