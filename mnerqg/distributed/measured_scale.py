"""The pipeline around a model that sleeps: rows a second against model actors, seconds against rows."""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import ray
import ray.data
from ray.cluster_utils import Cluster

from mnerqg.benchmark.posts import write_archive
from mnerqg.benchmark.rounds import Report, Round, Work, paces, ratio, spread, spread_of, turn_about
from mnerqg.benchmark.sleeping import SleepingTagger
from mnerqg.config_jobs import TagConfig
from mnerqg.distributed.measured_tagging import tag_once
from mnerqg.distributed.session import connect
from mnerqg.distributed.tagging_stages import GPU_BATCH_POSTS
from mnerqg.errors import ConfigError
from mnerqg.model.files import check_model

_STORE_BYTES = 2**30  # of each fake node: as many blocks of the usual size as wait in a run


@dataclass(frozen=True)
class LoadSleeping:
    """Makes the sleeping tagger of a model actor; the stages around it are those of a real model directory."""

    seconds_a_post: float
    tell: Callable[[Work], object]

    def __call__(self, uri: str) -> SleepingTagger:
        del uri
        return SleepingTagger(self.seconds_a_post, self.tell)


@dataclass(frozen=True)
class Scale:
    """Tagging runs with the model that sleeps.

    Attributes:
        config: of the runs; their actors are set here.
        model: URI of a model directory.
        seconds_a_post: of the sleep.
        cpus_per_node: logical CPUs of each fake node; None: the cluster that `connect` joins is taken as it is.
        beside: where folders for tags and made-up posts are made.
        rounds: turns of each run.
    """

    config: TagConfig
    model: str
    seconds_a_post: float
    cpus_per_node: int | None
    beside: Path
    rounds: int

    def measure(
        self, report: Report, archive: str | None, nodes: Sequence[int], posts: int, rows: Sequence[int]
    ) -> None:
        """Rows a second against nodes, each with an actor; then, on the first number of them, time against rows.

        Args:
            report: gets the figures.
            archive: that is tagged; None: `posts` made-up ones.
            nodes: how many there are.
            posts: see `archive`.
            rows: of made-up archives.

        Raises:
            MnerqgError: model, archive or cluster are not as they should be.
        """
        check_model(self.model)
        if self.cpus_per_node is None:
            connect()
        with TemporaryDirectory(prefix="posts-", dir=self.beside) as folder:
            made_up = {count: f"{folder}/{count}" for count in {*rows, *([] if archive else [posts])}}
            for count, uri in made_up.items():
                write_archive(uri, count)
            by_nodes = {
                str(count): partial(self._run_together, archive or made_up[posts], count) for count in nodes
            }
            by_rows = {f"{count} rows": partial(self._run, made_up[count], nodes[0]) for count in rows}
            measured = turn_about(by_nodes, self.rounds, report)
            sized = turn_about(by_rows, self.rounds, report)
        paces(report, sized, {})
        paces(report, measured, {})
        report.figures |= {
            "nodes": _by_nodes(measured),
            "rows": _by_rows({count: sized[f"{count} rows"] for count in rows}),
        }

    def _run(self, archive: str, nodes: int) -> Round:
        # The model sleeps as a GPU would work, in batches of a GPU's size. A fake node says that it has one, so that
        # Ray has the actor do nothing else.
        batch_posts = self.config.batch_posts or GPU_BATCH_POSTS
        config = self.config.model_copy(update={"actors": nodes, "batch_posts": batch_posts})
        with nullcontext() if self.cpus_per_node is None else fake_nodes(nodes, self.cpus_per_node):
            done = tag_once(
                config,
                self.model,
                archive,
                self.beside,
                lambda _, tell: LoadSleeping(self.seconds_a_post, tell),
            )
        pace = done["together_posts_per_second"]
        limit = nodes / self.seconds_a_post
        return done | {"limit_posts_per_second": limit, "efficiency": pace and pace / limit}

    def _run_together(self, archive: str, nodes: int) -> Round:
        """As `_run`; it fails where it does not say how fast all actors are together."""
        done = self._run(archive, nodes)
        if done["model_actors"] < nodes:
            done["failures"].append(f"of {nodes} model actors {done['model_actors']} answered anything")
        elif done["together_posts_per_second"] is None and not done["failures"]:
            done["failures"].append(
                f"{done['posts']:,} posts are too few for all model actors to work at once; raise --posts"
            )
        return done


def _by_nodes(measured: Mapping[str, list[Round]]) -> list[dict[str, Any]]:
    paces = {count: spread_of(done, "together_posts_per_second") for count, done in measured.items()}
    first = next(iter(paces.values()))
    return [
        {
            "nodes": int(count),
            "rows_per_second": spread_of(done, "posts_per_second"),
            "steady_rows_per_second": spread_of(done, "steady_posts_per_second"),
            "together_rows_per_second": paces[count],
            "ratio_to_first": ratio(paces[count], first),
            "limit_rows_per_second": done[0]["limit_posts_per_second"],
            "efficiency": spread_of(done, "efficiency"),
            "device_busy": spread_of(done, "device_busy"),
        }
        for count, done in measured.items()
    ]


def _by_rows(measured: Mapping[int, list[Round]]) -> list[dict[str, Any]]:
    return [
        {
            "rows": count,
            "seconds": spread_of(done, "seconds"),
            "ms_per_row": spread(1000 * one["seconds"] / max(one["posts"], 1) for one in done),
            "memory": {name: max(one["memory"][name] for one in done) for name in done[0]["memory"]},
        }
        for count, done in measured.items()
    ]


@contextmanager
def fake_nodes(count: int, cpus: int) -> Iterator[None]:
    """A cluster of processes on this machine, joined by this process: a head without CPUs, and nodes that say that they
    have `cpus` and a GPU each.

    Raises:
        ConfigError: this process has joined another one already.
    """
    if ray.is_initialized():
        raise ConfigError(
            "this process has a Ray session already, and fake nodes need one of their own; give --here"
        )
    head = {"num_cpus": 0, "object_store_memory": _STORE_BYTES, "include_dashboard": False}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    try:
        for _ in range(count):
            cluster.add_node(num_cpus=cpus, num_gpus=1, object_store_memory=_STORE_BYTES)
        cluster.wait_for_nodes()
        ray.init(address=cluster.address, log_to_driver=False, logging_level=logging.WARNING)
        ray.data.DataContext.get_current().enable_progress_bars = False
        yield
    finally:
        ray.shutdown()
        cluster.shutdown()
