"""A whole tagging run, measured: pace, the device's share of the time, memory, and what must not happen."""

import shutil
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import mkdtemp
from typing import TYPE_CHECKING, Any

import ray

from mnerqg.benchmark.processes import watched
from mnerqg.benchmark.rounds import Round, Work
from mnerqg.config_jobs import TagConfig
from mnerqg.distributed.measured_session import (
    Tell,
    device_busy,
    open_book,
    pace_together,
    raylets_here,
    read_book,
    session_faults,
)
from mnerqg.distributed.tagging import model_settings, tag_archive
from mnerqg.distributed.tagging_plan import TagPlan, plan_tagging
from mnerqg.distributed.tagging_resources import plan_resources
from mnerqg.distributed.tagging_stages import ModelSettings, load
from mnerqg.errors import MnerqgError

if TYPE_CHECKING:
    from mnerqg.tagger import Tagger

LoadTagger = Callable[[str], Any]


@dataclass(frozen=True)
class LoadWatched:
    """Loads the tagger of a model actor as a run does, and has its device watched.

    Attributes:
        settings: of the actor.
        tell: is told of every batch.
    """

    settings: ModelSettings
    tell: Callable[[Work], object]

    def __call__(self, uri: str) -> "Tagger":
        from mnerqg.benchmark.recording import Watched

        del uri  # the settings have it
        tagger = load(self.settings)
        finder: Any = tagger.finder
        finder.timed_answers = Watched(finder, self.tell)
        return tagger


def watched_tagger(plan: TagPlan, tell: Callable[[Work], object]) -> LoadWatched:
    """That of a run on the running cluster."""
    resources = plan_resources(plan.config, ray.cluster_resources())
    return LoadWatched(model_settings(plan, resources, "benchmark"), tell)


def tag_once(
    config: TagConfig,
    model: str,
    archive: str,
    beside: Path,
    load_tagger: Callable[[TagPlan, Tell], LoadTagger],
) -> Round:
    """Tag an archive on the running cluster into a folder that is removed afterwards.

    Args:
        config: of the run.
        model: URI of the model directory.
        archive: URI.
        beside: the folder in which that of the tags is made, which all nodes must see.
        load_tagger: makes the run's hook of its plan and of what is to be told of each batch.

    Returns:
        `posts`, `seconds` from the planning to the manifest, the pace from the first model's first batch to the end,
        `steady_posts_per_second`, and that of `pace_together`; `cpus_busy`, the share of their time in which this
        machine's CPUs worked meanwhile. `failures`: what must not happen.

    Raises:
        MnerqgError: model, archive or cluster are not as they should be; a run that fails on the way is a failure.
    """
    folder = Path(mkdtemp(prefix="tags-", dir=beside))
    try:
        with open_book() as book, watched(raylets_here()) as (memory, cpus):
            before = session_faults()
            started = time.time()
            plan = plan_tagging(config, model, archive, str(folder / "out"))
            failures = []
            manifest: dict[str, Any] = {}
            try:
                manifest = tag_archive(plan, load_tagger(plan, Tell(book)))
            except MnerqgError as error:
                if error.exit_code != 1:
                    raise
                failures.append(str(error))
            ended = time.time()
            faults = session_faults().since(before)
            rows = int(manifest.get("rows", 0))
            work = read_book(book, rows) if rows else []
        if rows != plan.archive.rows and not failures:
            failures.append(f"{rows:,} rows came out for {plan.archive.rows:,} posts")
        failures += faults.in_words()
        began = min((one.began for _, one in work), default=None)
        return {
            "posts": rows,
            "seconds": ended - started,
            "steady_posts_per_second": rows / max(ended - began, 1e-9) if began is not None else None,
            "together_posts_per_second": pace_together(work),
            "first_batch_after_s": None if began is None else began - started,
            "device_busy": device_busy(work),
            "cpus_busy": None if began is None else cpus.busy(began, ended),
            "model_busy": manifest.get("model_busy"),
            "model_actors": len({actor for actor, _ in work}),
            "batches": len(work),
            "memory": memory.as_record(),
            "spilled_bytes": faults.spilled_bytes,
            "failures": failures,
        }
    finally:
        with suppress(OSError):
            shutil.rmtree(folder)
