"""What the host part of a model actor takes of a post, the device replaced by what it once answered."""

import time
from typing import Any

import pyarrow as pa

from mnerqg.benchmark.posts import made_up_posts, posts_table
from mnerqg.benchmark.recording import Recorded, Recorder
from mnerqg.benchmark.rounds import Report, Round, paces, spread_of, turn_about
from mnerqg.config_jobs import ColumnsConfig, ImageLimits
from mnerqg.distributed.picture_stages import DecodePictures
from mnerqg.distributed.tagging_stages import ModelSettings, TagPosts, load
from mnerqg.distributed.text_stage import EncodeTexts
from mnerqg.inputs.text import TextEncoderSource
from mnerqg.model.build import build_collator
from mnerqg.model.files import ModelFiles, check_model
from mnerqg.model.found import FOUND, Found
from mnerqg.schema import ROW_HASH, Post

_BATCHES = 4  # of one call


def measure(report: Report, model: str, batch_posts: int, rounds: int) -> None:
    """One actor's call on made-up posts of a tweet's length with pictures, again and again.

    Raises:
        MnerqgError: the model is not as it should be.
    """
    files = check_model(model)
    posts = made_up_posts(_BATCHES * batch_posts)
    host = HostPart(model, files, posts, batch_posts)
    report.device = "recorded, 1 thread"
    measured = turn_about({"host": host.measure}, rounds, report)
    paces(report, measured, {"host": len(posts)})
    spreads = {
        key: spread_of(measured["host"], key) or {} for key in ("host_us_per_post", "wall_us_per_post")
    }
    report.figures |= {
        "host_us_per_post": spreads["host_us_per_post"]["median"],
        "spread": spreads,
        "spans_a_post": host.spans / len(posts),
    }


class HostPart:
    """A model actor in this process on one table of prepared posts, `batch_posts` at a time.

    Args:
        model: URI of the model directory.
        files: what lies there.
        posts: as many as one call of an actor is given, or fewer.
        batch_posts: of one call of the network.
    """

    def __init__(self, model: str, files: ModelFiles, posts: list[Post], batch_posts: int) -> None:
        side = files.config.model.image_side
        settings = ModelSettings(
            model=model,
            queries=files.queries,
            side=side,
            batch_posts=batch_posts,
            device="cpu",
            threads=1,
            precision=None,
            compiled=False,
            run_id="host",
        )
        tagger = load(settings)
        finder: Any = tagger.finder
        self._actor = TagPosts(settings, lambda _: tagger, report=lambda _: None)
        self._table = _prepared(posts, files.text_encoder, side)
        finder.answers = recorder = Recorder(finder.answers)
        found = self._actor(self._table)
        self.spans = len(Found.from_arrow(found[FOUND].combine_chunks())[1].spans)
        finder.answers = Recorded(recorder.answers)
        # As for a GPU, but for its pinned memory.
        finder.collate = build_collator(
            files.config, tagger.text_encoder, groups=False, even=True
        ).of_sentences

    def measure(self) -> Round:
        """One call of the actor, with the device's recorded answers."""
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


def _prepared(posts: list[Post], source: TextEncoderSource, side: int) -> pa.Table:
    """What the stages before the model hand to it."""
    columns = ColumnsConfig()
    table = posts_table(posts, columns).append_column(ROW_HASH, pa.array(range(len(posts)), pa.uint64()))
    return DecodePictures(columns, side, ImageLimits())(EncodeTexts(columns, source, 1)(table))
