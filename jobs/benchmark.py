"""Measure speed: `python jobs/benchmark.py host|tag|train|fetch|scale … --output F.json [--key value]`.

tag: an archive tagged pair by pair as research code does it, by the bare network, by Tagger and by the whole job on
Ray. train: the training step against training pair by pair and against the step alone. fetch: pictures a second from
S3 or elsewhere. scale: the pipeline around a model that sleeps, on fake nodes. host: what a model actor takes of a
post beside its network.

Variants take turns, three rounds or more, and F.json has each round, medians and spreads, the settings and the
machine. It is written after each turn, so that a run that is cut short leaves what it has measured. A wrong number
of rows, a process killed or spilling ends it with exit code 1. Settings of tag, fetch and scale are those of
jobs/tag.py, those of train are those of jobs/train.py.
"""

import argparse
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from mnerqg.benchmark import tables
from mnerqg.benchmark.rounds import Report, counts, written
from mnerqg.cli import HelpFormatter, add_verbose, job_parser, run
from mnerqg.config import Config
from mnerqg.config_files import find_recipe, load_file, load_files
from mnerqg.config_jobs import TagConfig
from mnerqg.errors import ConfigError
from mnerqg.places import local_place, place

CONFIGS = Path(__file__).parent / "configs"


def main(argv: list[str]) -> None:
    """Measure what is asked for, print a table, and write the JSON.

    Raises:
        MnerqgError: model, archive, dataset or settings are not as they should be; or, after the JSON was written,
            something must not have happened.
    """
    arguments, overrides = _parser().parse_known_args(argv)
    for name in ("rounds", "posts", "steps", "pictures", "cpus_per_node", "us_per_post"):
        if getattr(arguments, name, 1) < 1:
            raise ConfigError(
                f"--{name.replace('_', '-')} is {getattr(arguments, name)}; give a number above 0"
            )
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    arguments.measure(arguments, overrides)


def _parser() -> argparse.ArgumentParser:
    parser = job_parser("jobs/benchmark.py", __doc__, TagConfig)
    commands = parser.add_subparsers(dest="command", required=True, metavar="host|tag|train|fetch|scale")

    def command(name: str, text: str, measure: Callable[..., None]) -> argparse.ArgumentParser:
        added = commands.add_parser(name, help=text, formatter_class=HelpFormatter, allow_abbrev=False)
        added.set_defaults(measure=measure)
        added.add_argument("--output", type=local_place, required=True, help="the JSON to be written")
        added.add_argument("--rounds", type=int, default=3, help="turns of every variant (default: 3)")
        return added

    host = command("host", "a model actor without its network", measure_host)
    host.add_argument("--model", type=place, required=True, help="model directory")
    host.add_argument("--batch-posts", type=int, default=128, help="posts the network sees (default: 128)")
    tag = command("tag", "tagging, in five ways", measure_tag)
    tag.add_argument("--model", type=place, required=True, help="model directory")
    tag.add_argument("--posts", type=int, default=512, help="posts of all ways but the job (default: 512)")
    train = command("train", "the training step, in three ways", measure_train)
    train.add_argument("--data", type=place, required=True, help="prepared dataset")
    source = train.add_mutually_exclusive_group(required=True)
    source.add_argument("--config", type=local_place, action="append", help="recipe, as of jobs/train.py")
    source.add_argument("--model", type=place, help="model directory, in the place of a recipe")
    train.add_argument("--posts", type=int, default=256, help="posts that are learned from (default: 256)")
    train.add_argument("--steps", type=int, default=10, help="of one turn (default: 10)")
    fetch = command("fetch", "pictures from their URIs", measure_fetch)
    fetch.add_argument("--pictures", type=int, default=1000, help="pictures of one turn (default: 1000)")
    fetch.add_argument("--concurrency", default="1,8,32,128", help="requests in flight (default: 1,8,32,128)")
    scale = command("scale", "the pipeline around a model that sleeps", measure_scale)
    scale.add_argument("--model", type=place, required=True, help="model directory, for canvas and tokenizer")
    scale.add_argument("--input", type=place, help="archive (default: made-up posts without pictures)")
    scale.add_argument("--us-per-post", type=float, default=300, help="sleep of a post, µs (default: 300)")
    scale.add_argument("--nodes", default="1,2,4", help="nodes, a model actor each (default: 1,2,4)")
    scale.add_argument("--cpus-per-node", type=int, default=4, help="logical ones (default: 4)")
    scale.add_argument("--posts", type=int, default=100_000, help="made-up posts (default: 100000)")
    scale.add_argument("--rows", default="1000,10000", help="posts of further runs (default: 1000,10000)")
    scale.add_argument(
        "--here",
        action="store_true",
        help="no fake nodes: so many model actors on the cluster that RAY_ADDRESS names, or on one of this machine",
    )
    for one in (tag, fetch):
        one.add_argument("--input", type=place, required=True, help="archive")
    for one in (tag, fetch, scale):
        one.add_argument("--config", type=local_place, help="YAML of settings")
    for one in (tag, scale):
        add_verbose(one)
    return parser


def measure_host(arguments: argparse.Namespace, overrides: list[str]) -> None:
    """A model actor beside its network."""
    if overrides:
        raise ConfigError(f"unexpected argument {overrides[0]!r}; see jobs/benchmark.py host --help")
    report = _report("host", arguments)

    from mnerqg.distributed.measured_host import measure

    with written(report):
        measure(report, arguments.model, arguments.batch_posts, arguments.rounds)
        print(tables.host(report.figures))


def measure_tag(arguments: argparse.Namespace, overrides: list[str]) -> None:
    """Ways to tag one archive."""
    config = load_file(TagConfig, arguments.config, overrides)
    report = _report("tag", arguments, tag=config.model_dump(mode="json"))

    from mnerqg.distributed.measured_ways import measure
    from mnerqg.distributed.session import hush

    if not arguments.verbose:
        hush(workers_speak=False)
    with written(report):
        beside = arguments.output.parent
        measure(report, config, arguments.model, arguments.input, arguments.posts, arguments.rounds, beside)
        print(tables.tag(report.figures))


def measure_train(arguments: argparse.Namespace, overrides: list[str]) -> None:
    """Ways to make a training step."""
    paths = [find_recipe(path, CONFIGS) for path in arguments.config or ()]
    # Of a model directory the recipe is in it, and the command line changes that.
    config = load_files(Config, paths, overrides) if paths else None
    report = _report("train", arguments, overrides=overrides)

    from mnerqg.benchmark.training import measure

    with written(report):
        source = config or (arguments.model, overrides)
        measure(report, source, arguments.data, arguments.posts, arguments.steps, arguments.rounds)
        print(tables.train(report.figures))


def measure_fetch(arguments: argparse.Namespace, overrides: list[str]) -> None:
    """Pictures a second at several numbers of requests in flight."""
    config = load_file(TagConfig, arguments.config, overrides)
    concurrency = counts("concurrency", arguments.concurrency)
    report = _report("fetch", arguments, tag=config.model_dump(mode="json"))

    from mnerqg.benchmark.fetching import measure

    with written(report):
        measure(report, config, arguments.input, arguments.pictures, concurrency, arguments.rounds)
        print(tables.fetch(report.figures))


def measure_scale(arguments: argparse.Namespace, overrides: list[str]) -> None:
    """The pipeline around a model that sleeps."""
    config = load_file(TagConfig, arguments.config, overrides)
    nodes, rows = counts("nodes", arguments.nodes), counts("rows", arguments.rows)
    report = _report("scale", arguments, tag=config.model_dump(mode="json"))
    report.device = "sleeps"

    from mnerqg.distributed.measured_scale import Scale
    from mnerqg.distributed.session import hush

    if not arguments.verbose:
        hush(workers_speak=False)
    with written(report):
        scale = Scale(
            config,
            arguments.model,
            seconds_a_post=arguments.us_per_post / 1e6,
            cpus_per_node=None if arguments.here else arguments.cpus_per_node,
            beside=arguments.output.parent,
            rounds=arguments.rounds,
        )
        scale.measure(report, arguments.input, nodes, arguments.posts, rows)
        print(tables.scale(report.figures))


def _report(benchmark: str, arguments: argparse.Namespace, **settings: Any) -> Report:
    left_out = ("measure", "command", "verbose")
    given = {name: value for name, value in vars(arguments).items() if name not in left_out}
    plain = {name: value if isinstance(value, int | float) else str(value) for name, value in given.items()}
    return Report(benchmark, plain | settings, arguments.output)


command = partial(run, main, interrupted="what turns it has measured are in its JSON")

if __name__ == "__main__":
    command()
