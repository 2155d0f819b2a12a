"""The whole product on a small world of its own: `python jobs/demo.py --output DIR`, or `make demo`.

Draws a world of posts with pictures to DIR/posts, then runs the jobs as a user would: prepare, train, evaluate, tag,
report. The commands are printed; their output goes through. A closing summary says what was found and where it lies.
"""

import json
import shlex
import shutil
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pyarrow.dataset as ds

from mnerqg.cli import format_table, job_parser, run
from mnerqg.demo.ambiguous import write_ambiguous
from mnerqg.demo.world import ARCHIVE_POSTS, SPLIT_POSTS, write_world
from mnerqg.errors import ConfigError, RunError
from mnerqg.places import local_place

JOBS = Path(__file__).parent


def main(argv: list[str]) -> None:
    """Draw the world, and unless that is all that is asked for, run the jobs on it.

    Raises:
        MnerqgError: the output holds something else, or a job failed.
    """
    parser = job_parser("jobs/demo.py", __doc__)
    parser.add_argument(
        "--output",
        type=local_place,
        default=Path("demo_output"),
        metavar="DIR",
        help="folder to write (default: demo_output)",
    )
    parser.add_argument(
        "--seed", type=int, default=7, help="another one draws another world (whole number; default: 7)"
    )
    parser.add_argument("--world-only", action="store_true", help="draw the world and stop")
    parser.add_argument(
        "--phrases",
        type=int,
        default=0,
        metavar="N",
        help="draw N pictures with captions, too, to DIR/posts/phrases in the layout of Flickr30K Entities "
        "(whole number; default: 0)",
    )
    parser.add_argument(
        "--ambiguous",
        action="store_true",
        help="draw posts, too, whose texts fit every type, so that only the picture tells it, to DIR/posts/ambiguous "
        "in the layout of the Twitter releases",
    )
    arguments = parser.parse_args(argv)
    output: Path = arguments.output
    posts, training, tags = (output / name for name in ("posts", "run", "tags"))
    if output.exists() and any(output.iterdir()) and not (posts / "demo.json").is_file():
        raise ConfigError(f"--output {output} holds files of no earlier demo; choose an empty or new folder")
    started = time.monotonic()
    write_world(posts, arguments.seed, arguments.phrases)
    if arguments.ambiguous:
        write_ambiguous(posts / "ambiguous", arguments.seed)
    counts = ", ".join(f"{count} {split}" for split, count in SPLIT_POSTS.items())
    print(f"{counts} posts in {posts}; {ARCHIVE_POSTS} to tag in {posts / 'archive'}", flush=True)
    if arguments.world_only:
        return
    for folder in (training, tags):  # of an earlier demo
        shutil.rmtree(folder, ignore_errors=True)
    dataset, model, scores = output / "dataset", training / "best", output / "scores.json"
    _step("prepare", "prepare.py", "twitter", "--root", posts, "--output", dataset, "--overwrite")
    config = JOBS / "configs" / "demo.yaml"
    _step("train", "train.py", "--config", config, "--data", dataset, "--output", training)
    _step(
        "evaluate", "evaluate.py", "--model", model, "--data", dataset, "--split", "test", "--output", scores
    )
    _step("tag", "tag.py", "--model", model, "--input", posts / "archive" / "posts.parquet", "--output", tags)
    report = output / "report"
    _step("report", "report.py", "--tags", tags, "--model", training, "--output", report)
    _summarise(output, model, scores, tags, time.monotonic() - started)


def _step(name: str, job: str, *arguments: str | Path) -> None:
    command = [sys.executable, str(JOBS / job), *map(str, arguments)]
    print(f"\n=== {name} ===\n$ python {shlex.join(command[1:])}", flush=True)
    started = time.monotonic()
    code = subprocess.run(command, check=False).returncode
    if code != 0:
        raise RunError(f"the step '{name}' ended with exit code {code}; its output above says why")
    print(f"--- {name}: {time.monotonic() - started:.0f} s", flush=True)


def _summarise(output: Path, model: Path, scores_file: Path, tags: Path, seconds: float) -> None:
    scores = json.loads(scores_file.read_text(encoding="utf-8"))
    table = ds.dataset(tags, format="parquet").to_table(columns=["post_id", "entities", "regions"])
    rows = table.to_pylist()
    entities = sum(len(row["entities"]) for row in rows)
    regions = sum(len(row["regions"]) for row in rows)
    print(f"\n=== done in {seconds / 60:.1f} min ===")
    print(
        f"held-out posts: entity F1 {scores['f1']:.3f}, Accu@0.5 {scores['accuracy_50']:.3f}, "
        f"GMNER F1 {scores['gmner_f1']:.3f} ({scores['posts']} posts)"
    )
    print(f"archive: {len(rows)} posts tagged, {entities} entities, {regions} regions; for example")
    shown = [row for row in rows if any(entity["region"] is not None for entity in row["entities"])]
    for row in shown[:5]:
        entity = next(entity for entity in row["entities"] if entity["region"] is not None)
        region = row["regions"][entity["region"]]
        box = ", ".join(f"{region[side]:.0f}" for side in ("x_min", "y_min", "x_max", "y_max"))
        print(
            f"  {row['post_id']}: {entity['type']} {entity['text']!r} [{entity['start']}:{entity['end']}] "
            f"in the picture at ({box})"
        )
    places = [("tags", tags), ("model", model), ("scores", scores_file), ("posts", output / "posts")]
    print(format_table([(name, str(place)) for name, place in places], figures=False, indent="  "))
    print(f"look at it in a browser: {(output / 'report' / 'report.html').resolve().as_uri()}")


command = partial(run, main, interrupted="run it again: the world is the same, and training begins anew")

if __name__ == "__main__":
    command()
