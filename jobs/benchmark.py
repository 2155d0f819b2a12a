"""Tagging on Ray Data side by side with the plain loop over the same posts, in one run on one machine:
`python jobs/benchmark.py --model URI --input URI --output URI [--posts N] [--config F] [--key value]`.

The plain loop reads a batch of rows, fetches their pictures with the same number of requests in flight, decodes and
tags them, and goes on to the next batch. Settings are those of `jobs/tag.py`. The output must be a new folder.
"""

import itertools
import threading
import time
from collections.abc import Iterator
from functools import partial
from typing import Any

import pyarrow as pa

from mnerqg.cli import add_verbose, job_parser, run
from mnerqg.config_files import load_file
from mnerqg.config_jobs import TagConfig
from mnerqg.distributed.session import connect, hush
from mnerqg.distributed.tagging import tag_archive
from mnerqg.distributed.tagging_plan import TagPlan, plan_tagging
from mnerqg.errors import ConfigError
from mnerqg.io import storage
from mnerqg.io.parquet import open_parquet
from mnerqg.io.picture_store import PictureStore
from mnerqg.places import local_place, place
from mnerqg.schema import Post
from mnerqg.tagger import Tagger


def main(argv: list[str]) -> None:
    """Measure both and print rows a second, their ratio and the time to the first file of tags.

    Raises:
        MnerqgError: as `jobs/tag.py`; the archive must be Parquet with `image_uri` or without pictures.
    """
    parser = job_parser("jobs/benchmark.py", __doc__, TagConfig)
    parser.add_argument("--model", type=place, required=True, help="model directory")
    parser.add_argument("--input", type=place, required=True, help="archive in Parquet")
    parser.add_argument(
        "--output", type=place, required=True, help="new folder for the tags of the run on Ray"
    )
    parser.add_argument("--posts", type=int, default=1000, help="posts of the plain loop")
    parser.add_argument("--config", type=local_place, help="YAML of settings")
    add_verbose(parser)
    arguments, overrides = parser.parse_known_args(argv)
    if not arguments.verbose:
        hush(workers_speak=False)
    config = load_file(TagConfig, arguments.config, overrides)
    plan = plan_tagging(config, arguments.model, arguments.input, arguments.output)
    if plan.state.run_id is not None:
        raise ConfigError(f"--output {plan.output} holds a run; choose a new folder")
    if plan.archive.format != "parquet" or plan.archive.pictures not in ("uris", "none"):
        raise ConfigError(
            f"--input {plan.archive.name} is {plan.archive.format} with {plan.archive.pictures}; the plain loop "
            "reads Parquet with image_uri, or without pictures"
        )
    plain_rows, plain_s = tag_plainly(plan, arguments.posts)
    print(
        f"plain loop: {plain_rows:,} posts in {plain_s:.1f} s, {plain_rows / plain_s:.1f} a second",
        flush=True,
    )
    started = time.monotonic()
    connect()
    first = FirstFile(plan.output, started)
    manifest = tag_archive(plan)
    total_s = time.monotonic() - started
    print(f"Ray: {manifest['rows']:,} posts in {total_s:.1f} s from start to end")
    print(f"  first file of tags after {first.seconds:.1f} s")
    print(
        f"  {manifest['rows_per_second']:.1f} posts a second with that, model busy {manifest['model_busy']:.0%}"
    )
    rest = manifest["rows"] - sum(file["rows"] for file in manifest["files"] if file["name"] in first.names)
    if rest:
        pace = rest / (total_s - first.seconds)
        print(
            f"  {pace:.1f} posts a second after it; ratio to the plain loop {pace * plain_s / plain_rows:.2f}"
        )


def tag_plainly(plan: TagPlan, count: int) -> tuple[int, float]:
    """Tag the first `count` posts in this process; posts and seconds, the loading of the model left out."""
    tagger = Tagger.load(plan.model)
    store = PictureStore(plan.pictures)
    rows = itertools.islice(_rows(plan), count)
    started = time.monotonic()
    done = 0
    while batch := list(itertools.islice(rows, plan.config.batch_posts)):
        fetched = store.fetch_many([uri for _, _, uri in batch])
        posts = [
            Post(post_id, text, one.data) for (post_id, text, _), one in zip(batch, fetched, strict=True)
        ]
        done += len(tagger.tag(posts, batch_size=plan.config.batch_posts))
    return done, time.monotonic() - started


def _rows(plan: TagPlan) -> Iterator[tuple[str, str | None, str | None]]:
    columns = plan.config.columns
    names = [columns.post_id, columns.text, *([columns.image_uri] if plan.archive.pictures == "uris" else [])]
    for entry in plan.archive.files:
        with open_parquet(entry) as file:
            for batch in file.iter_batches(columns=names):
                yield from _tuples(batch, names)


def _tuples(batch: pa.RecordBatch, names: list[str]) -> Iterator[tuple[Any, Any, Any]]:
    values = [batch[name].to_pylist() for name in names]
    if len(values) == 2:  # no pictures
        values.append([None] * batch.num_rows)
    return zip(*values, strict=True)


class FirstFile:
    """Watches for the first files of tags, in a thread.

    Attributes:
        seconds: until they were there, to a quarter of a second.
        names: theirs, below the output.
    """

    def __init__(self, output: str, started: float) -> None:
        self.seconds = float("nan")
        self.names: set[str] = set()
        threading.Thread(target=self._watch, args=(output, started), daemon=True).start()

    def _watch(self, output: str, started: float) -> None:
        while not (storage.exists(output) and storage.list_files(output, ".parquet")):
            time.sleep(0.25)
        self.seconds = time.monotonic() - started
        self.names = {
            entry.uri.removeprefix(output).lstrip("/") for entry in storage.list_files(output, ".parquet")
        }


command = partial(
    run, main, interrupted="nothing is measured before the end: run it again with a new --output"
)

if __name__ == "__main__":
    command()
