"""Bulk tagging of an archive of posts on Ray Data.

    read -> (LeaveOut) -> FetchPictures -> EncodeTexts, DecodePictures (tasks) -> TagPosts (actors)
        -> FinishRows, write_parquet (tasks)

`tagging_plan` says beforehand what is to be done; `mnerqg.archive.run` says which rows are done when a run has died,
and when it is finished.
"""

import itertools
import logging
import math
import time
import uuid
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import numpy as np
import ray
import ray.data

from mnerqg.archive import run as tag_run
from mnerqg.archive.run import RowHashes
from mnerqg.distributed.failures import data_error, first_cause
from mnerqg.distributed.finish_stage import FinishRows, FinishSettings
from mnerqg.distributed.picture_stages import DecodePictures, FetchPictures
from mnerqg.distributed.short_queues import bound_queues
from mnerqg.distributed.sources import read_archive
from mnerqg.distributed.tag_monitor import Report, started_monitor
from mnerqg.distributed.tag_progress import shown_progress
from mnerqg.distributed.tagging_plan import TagPlan
from mnerqg.distributed.tagging_resources import Resources, plan_resources
from mnerqg.distributed.tagging_stages import (
    CPU_BATCH_POSTS,
    ModelSettings,
    TagPosts,
    chunk_rows,
)
from mnerqg.distributed.text_stage import EncodeTexts
from mnerqg.errors import DataError, RunError
from mnerqg.io import storage
from mnerqg.schema import ROW_HASH

if TYPE_CHECKING:
    from mnerqg.tagger import Tagger

_FETCH_BATCH = 64  # posts; bounds the encoded pictures that one task holds at a time
_DECODE_BATCH = 32
_ROWS_OF_TEXTS = 1_024  # a quarter of a second to tokenise them
_FINISH_BATCH = 512  # of the rows of a file, which are Python objects for a moment
_PASSES = 2  # over the archive; the second tags what was lost in the first

logger = logging.getLogger(__name__)


def tag_archive(
    plan: TagPlan, load_tagger: "Callable[[str], Tagger] | None" = None, *, verbose: bool = False
) -> dict[str, Any]:
    """Tag the archive on the running cluster and return the manifest.

    Whatever ends it, the same call goes on where it stopped. A finished run's tags are left as they are. Where another
    job takes the output over, since this process stood still for a minute, it ends the process.

    Args:
        plan: from `plan_tagging`.
        load_tagger: makes an actor's tagger from the model's URI; None is `Tagger.load`.
        verbose: let Ray show its own tables, in the place of our line or bar.

    Raises:
        ConfigError: the cluster is too small for the stages.
        StorageError: the output cannot be read or written before the run has begun.
        DataError: a file of the archive is damaged where only its rows show it.
        RunError: another job is writing there, the run or the store failed, rows out are not rows in, or too many
            pictures failed; nothing is marked as finished.
    """
    if plan.state.manifest is not None:
        return plan.state.manifest
    resources = plan_resources(plan.config, ray.cluster_resources())
    folder = tag_run.tags_folder(plan.output)
    notes = {
        "run_id": uuid.uuid4().hex[:12],
        "request": plan.request,
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    with (
        folder.writing(plan.asked, notes, restart=plan.restart) as run,
        started_monitor() as monitor,
    ):
        if (manifest := folder.result()) is not None:
            return manifest  # another job has finished it since it was planned
        started = time.monotonic()
        if plan.base is not None:
            tag_run.keep_good_rows(plan.base, plan.output)
        tools = _Tools(load_tagger, monitor, verbose)
        rows = _tag_missing_rows(plan, resources, run["run_id"], tools)
        seconds = time.monotonic() - started
        busy, ready = ray.get(monitor.totals.remote())
        facts = {
            "run_id": run["run_id"],
            **plan.request,
            "rows_this_time": rows,
            "seconds": round(seconds, 1),
            "rows_per_second": round(rows / max(seconds, 1e-3), 1),
            "model_busy": round(busy / ready, 3) if ready else None,
            **ray.get(monitor.starts.remote()),
        }
        return tag_run.finish(folder, plan.archive, facts, max_failed=plan.config.max_failed)


def _tag_missing_rows(
    plan: TagPlan,
    resources: Resources,
    run_id: str,
    tools: "_Tools",
) -> int:
    """Tag what is not there and return how many rows that were.

    Afterwards it looks again: workers of a dead driver, or of a node that was lost, may have ended a file after the
    first look, and of two files with the same row one has gone, with all its rows.
    """
    tagged = 0
    for passes in itertools.count():
        done = tag_run.reconcile(plan.output, plan.archive.left_out)
        missing = plan.archive.rows - len(done)
        if missing <= 0 or passes == _PASSES:
            break
        logger.info(
            "run %s: %s posts to tag, %s done before, into %s",
            run_id,
            f"{missing:,}",
            f"{len(done):,}",
            plan.output,
        )
        try:
            with (
                nullcontext()
                if tools.verbose
                else shown_progress(tools.monitor, plan.archive.rows, len(done))
            ):
                _write(plan, resources, _Job(run_id, done, tools))
        except Exception as error:  # Ray raises its own, pyarrow's and, disguised, the stages' errors
            if (cause := data_error(error)) is not None:
                raise DataError(
                    f"{cause}; run {run_id} is not finished, and what it has written is safe"
                ) from error
            raise RunError(
                f"run {run_id}: tagging failed: {first_cause(error)}; what is written is safe: run the same "
                "command again"
            ) from error
        tagged += missing
    return tagged


@dataclass(frozen=True)
class _Tools:
    """What all passes of a run share."""

    load_tagger: "Callable[[str], Tagger] | None"
    monitor: Any
    verbose: bool


@dataclass(frozen=True)
class _Job:
    """One pass over the archive, which leaves out the rows that are `done`."""

    run_id: str
    done: RowHashes
    tools: _Tools


class LeaveOut:
    """Drops the rows that are done: a sorted array of their `row_hash` in the object store."""

    def __init__(self, done: Any) -> None:
        self._done = done

    def __call__(self, rows: Any) -> Any:
        done: RowHashes = ray.get(self._done)
        ids = rows[ROW_HASH].to_numpy()
        places = np.minimum(np.searchsorted(done, ids), len(done) - 1)
        return rows.filter(done[places] != ids)


def _write(plan: TagPlan, resources: Resources, job: _Job) -> None:
    config, columns = plan.config, plan.config.columns
    filesystem, path = storage.filesystem(tag_run.tags_of(plan.output))
    rows_per_file = _rows_per_file(plan)
    with ray.data.DataContext.current(_context(resources, job.tools.verbose)):
        tags = _pipeline(plan, resources, job)
        # Ray's own bound on the rows of a file is not for partitioned writes; there a block is a write.
        if columns.partition_by:
            tags = tags.repartition(target_num_rows_per_block=rows_per_file)
        tags.set_name(f"tag-{job.run_id}")
        tags.write_parquet(
            path,
            filesystem=filesystem,
            schema=_finish_settings(plan, job.run_id).schema,
            compression="zstd",
            mode="append",
            partition_cols=list(columns.partition_by) or None,
            min_rows_per_file=None if columns.partition_by else rows_per_file,
            max_rows_per_file=config.max_rows_per_file,
            ray_remote_args={"num_cpus": resources.cpus_per_task},
        )


def _rows_per_file(plan: TagPlan) -> int:
    """The least that a file holds."""
    rows = plan.config.min_rows_per_file or min(max(plan.archive.rows // 32, 1_000), 20_000)
    return min(rows, plan.config.max_rows_per_file)


def _context(resources: Resources, verbose: bool) -> ray.data.DataContext:
    """All settings of Ray Data that tagging relies on."""
    context = ray.data.DataContext.get_current().copy()
    context.target_max_block_size = resources.block_bytes
    # A lost row must fail the run: one bad row would otherwise take its whole block with it.
    context.max_errored_blocks = 0
    context.actor_init_retry_on_errors = True
    context.max_consecutive_actor_init_deaths = 5
    context.enable_progress_bars = verbose
    if resources.small:
        # Reserved shares of so few CPUs leave some of them idle.
        context.op_resource_reservation_enabled = False
    bound_queues(context)
    return context


def model_settings(plan: TagPlan, resources: Resources, run_id: str) -> ModelSettings:
    """What the model actors of a run are told."""
    return ModelSettings(
        model=plan.model,
        queries=plan.queries,
        side=plan.side,
        batch_posts=plan.config.batch_posts,
        device="cuda" if resources.gpus_per_actor else "cpu",
        threads=resources.threads_per_actor,
        precision=plan.config.precision,
        compiled=plan.config.compiled,
        run_id=run_id,
    )


def _finish_settings(plan: TagPlan, run_id: str) -> FinishSettings:
    return FinishSettings(
        columns=plan.config.columns,
        pass_through=plan.archive.pass_through,
        several_pictures=plan.archive.pictures == "lists",
        decode=plan.model_config.decode,
        types=tuple(query.type for query in plan.queries),
        side=plan.side,
        model_id=plan.model_id,
        run_id=run_id,
    )


def _pipeline(plan: TagPlan, resources: Resources, job: _Job) -> ray.data.Dataset:
    config, columns, archive = plan.config, plan.config.columns, plan.archive
    task_cpus = resources.cpus_per_task
    posts = read_archive(archive, num_cpus=task_cpus)
    if len(job.done):
        posts = posts.map_batches(
            LeaveOut(ray.put(job.done)), batch_format="pyarrow", batch_size=None, num_cpus=task_cpus
        )
    # A row group of a million short posts would be the work of one task: cut it to what fills a block with
    # canvases, or with `_ROWS_OF_TEXTS`, and an archive of few posts into a piece or two a CPU.
    picture = archive.picture_column(columns)
    fills = _ROWS_OF_TEXTS
    if picture is not None:  # a power of two, as the batches of a GPU are
        fills = 2 ** int(math.log2(max(1, resources.block_bytes // (3 * plan.side**2))))
    rows = min(fills, archive.rows // (2 * max(1, int(resources.cluster_cpus))))
    posts = posts.repartition(
        target_num_rows_per_block=max(rows, config.batch_posts or CPU_BATCH_POSTS),
        # A short last block of each file would be a batch of another shape, for which a GPU takes as long as for many.
        strict=resources.gpus_per_actor > 0,
    )
    if picture is not None and archive.pictures != "bytes":
        posts = posts.map_batches(
            FetchPictures(columns, picture, plan.pictures),
            batch_format="pyarrow",
            batch_size=_FETCH_BATCH,
            num_cpus=task_cpus / 2,  # it mostly waits
            udf_modifying_row_count=False,
        )
    # Where the actors have no GPU and a task's CPUs, Ray fuses these two into them: nothing is lost, since both
    # then compete for the same CPUs, and the canvases need not travel.
    prepared = posts.map_batches(
        EncodeTexts(columns, plan.text_encoder, plan.windows),
        batch_format="pyarrow",
        batch_size=_DECODE_BATCH,
        num_cpus=task_cpus,
        udf_modifying_row_count=False,
    ).map_batches(
        DecodePictures(columns, plan.side, plan.pictures),
        batch_format="pyarrow",
        batch_size=_DECODE_BATCH,
        num_cpus=task_cpus,
        udf_modifying_row_count=False,
    )
    found = prepared.map_batches(
        TagPosts,
        fn_constructor_args=(
            model_settings(plan, resources, job.run_id),
            job.tools.load_tagger,
            Report(job.tools.monitor),
        ),
        batch_format="pyarrow",
        batch_size=chunk_rows(
            config.batch_posts,
            gpu=resources.gpus_per_actor > 0,
            side=plan.side,
            block_bytes=resources.block_bytes,
        ),
        # Of two calls the second one's batches are at hand when the first one's come to their end.
        compute=ray.data.ActorPoolStrategy(
            min_size=resources.min_actors,
            max_size=resources.max_actors,
            max_concurrent_calls_per_actor=2,
            enable_true_multi_threading=True,
        ),
        num_cpus=resources.cpus_per_actor,
        num_gpus=resources.gpus_per_actor,
        udf_modifying_row_count=False,
    )
    # Ray fuses this stage with the write, whose rows wait until they fill a file. The pieces of long texts would take
    # gigabytes there: with CPUs of another number than the write's the stage stays apart.
    return found.map_batches(
        FinishRows(_finish_settings(plan, job.run_id)),
        batch_format="pyarrow",
        # A batch is also the least that the write is given, and so the least that a dead driver costs.
        batch_size=min(_FINISH_BATCH, _rows_per_file(plan)),
        num_cpus=task_cpus if plan.windows == 1 else task_cpus / 2,
        udf_modifying_row_count=False,
    )
