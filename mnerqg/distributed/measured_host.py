"""What the host part of a model actor takes of a post, the network replaced by what it once answered."""

import time
from typing import Any

import pyarrow as pa
import torch

from mnerqg.benchmark.posts import made_up_posts, posts_table
from mnerqg.benchmark.recording import Recorded, Recorder
from mnerqg.benchmark.rounds import Report, Round, paces, spread_of, turn_about
from mnerqg.config_jobs import ColumnsConfig, ImageLimits
from mnerqg.distributed.picture_stages import DecodePictures
from mnerqg.distributed.tagging_stages import CHUNK_BATCHES, TagPosts, TagSettings
from mnerqg.model.files import check_model
from mnerqg.queries import EntityQuery
from mnerqg.schema import ROW_HASH, Post
from mnerqg.tagger import Tagger


def measure(report: Report, model: str, batch_posts: int, rounds: int) -> None:
    """One actor's call on made-up posts of a tweet's length with pictures, again and again.

    Raises:
        MnerqgError: the model is not as it should be.
    """
    files = check_model(model)
    posts = made_up_posts(batch_posts * CHUNK_BATCHES)
    host = HostPart(model, files.queries, posts, batch_posts)
    report.device = "recorded, 1 thread"
    measured = turn_about({"host": host.measure}, rounds)
    paces(report, measured, {"host": len(posts)})
    spreads = {
        key: spread_of(measured["host"], key) or {} for key in ("host_us_per_post", "wall_us_per_post")
    }
    report.figures |= {
        "host_us_per_post": spreads["host_us_per_post"]["median"],
        "spread": spreads,
        "entities_a_post": host.entities / len(posts),
    }


class HostPart:
    """A model actor in this process on one table of prepared posts, `batch_posts` at a time.

    Args:
        model: URI of the model directory.
        queries: what it is asked.
        posts: as many as one call of an actor is given, or fewer.
        batch_posts: of one call of the network.
    """

    def __init__(
        self, model: str, queries: tuple[EntityQuery, ...], posts: list[Post], batch_posts: int
    ) -> None:
        settings = TagSettings(
            model=model,
            queries=queries,
            columns=ColumnsConfig(),
            pass_through=(),
            several_pictures=False,
            batch_posts=batch_posts,
            windows=1,
            device="cpu",
            threads=1,
            precision=None,
            compiled=False,
            run_id="host",
        )
        torch.set_num_threads(settings.threads)
        self._tagger = Tagger.load(model, device="cpu", queries=queries)
        self._actor = TagPosts(settings, lambda _: self._tagger, report=lambda _: None)
        self._table = _prepared(posts, settings.columns, self._tagger.config.model.image_side)
        recorder = Recorder(self._tagger.model)
        self._replace(recorder)
        tags = self._actor(self._table)
        self.entities = sum(map(len, tags["entities"].to_pylist()))
        self._replace(Recorded(recorder.answers))

    def measure(self) -> Round:
        """One call of the actor, with the network's recorded answers."""
        started, cpu = time.perf_counter(), time.process_time()
        rows = self._actor(self._table).num_rows
        seconds, cpu = time.perf_counter() - started, time.process_time() - cpu
        return {
            "posts": rows,
            "seconds": seconds,
            "cpu_seconds": cpu,
            "host_us_per_post": 1e6 * cpu / max(rows, 1),
            "wall_us_per_post": 1e6 * seconds / max(rows, 1),
        }

    def _replace(self, network: Any) -> None:
        self._tagger.model = network


def _prepared(posts: list[Post], columns: ColumnsConfig, side: int) -> pa.Table:
    """What the stages before the model hand to it."""
    table = posts_table(posts, columns).append_column(ROW_HASH, pa.array(range(len(posts)), pa.uint64()))
    return DecodePictures(columns, side, ImageLimits())(table)
