"""A table of the paper with our figures beside its: `python jobs/experiments.py --table 3 --config BASE.yaml
--data URI --output DIR [--seeds 0,1] [--split S] [--paper twitter2015] [--section.key value ...]`.

Trains and scores what is missing, one run after another, then prints the table and writes it to DIR as Markdown and
JSON. The same command resumes after a kill, and tables share their runs (DIR/runs/SYSTEM-seedN). Every system is the
recipe of --config, its file in jobs/configs/variants, and the settings of the command line, which hold for all runs.

Systems that need weak boxes take them from --labeller MODEL. Without it FA-VG learns the manual boxes of a tenth of the
posts (train.boxed_share), after those of a phrase dataset where --phrases names one, and labels the data to
DIR/labelled. Manual boxes are what every system is scored against.
"""

import argparse
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
import yaml

from mnerqg.cli import job_parser, run
from mnerqg.config import ActorsConfig, Config
from mnerqg.config_files import load_files
from mnerqg.datasets.prepared import LABELS_FILE, count_posts, fingerprint, is_labelled
from mnerqg.distributed.evaluation import evaluate, write_per_post, write_scores
from mnerqg.distributed.labelling import label
from mnerqg.distributed.training import check_boxes, train
from mnerqg.errors import ConfigError, DataError
from mnerqg.io import storage
from mnerqg.io.parquet import open_parquet
from mnerqg.model.files import is_model
from mnerqg.scoring.tables import DATASETS, TABLES, PaperTable, ScoredRun, table_record, to_markdown

CONFIGS = Path(__file__).parent / "configs"
LABELLER = "fa_vg"
LABELLER_SHARE = 0.1  # of the posts with manual boxes [chosen]: weak boxes are for those who have few of them
SCORES_FILE, PER_POST_FILE = "evaluation.json", "per_post.parquet"


@dataclass(frozen=True)
class SystemRun:
    """One system trained with one seed; `folder` is the output of its training."""

    system: str
    config: Config
    folder: str

    @property
    def needs_weak_boxes(self) -> bool:
        return self.config.train.boxes != "manual" or self.config.model.picture == "region"


@dataclass(frozen=True)
class Step:
    """Something that takes long, and whether it has been done: then `do` only checks that it was the same."""

    what: str
    do: Callable[[], object]
    is_done: bool


def parse_arguments(argv: list[str]) -> tuple[argparse.Namespace, list[str]]:
    """The command line and the settings in it; argparse exits with 2 where it is wrong."""
    parser = job_parser("jobs/experiments.py", __doc__, Config)
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--table", type=int, choices=(2, 3, 4, 5), help="table of the paper")
    which.add_argument("--figure", type=int, choices=(4,), help="figure of the paper")
    parser.add_argument(
        "--config", required=True, action="append", type=Path, help="recipe that all systems share"
    )
    parser.add_argument("--data", required=True, help="prepared dataset (jobs/prepare.py), local or s3://")
    parser.add_argument("--output", required=True, help="folder of all experiments, local or s3://")
    parser.add_argument("--seeds", default="0", help="one run for each of these, such as 0,1,2 (default: 0)")
    parser.add_argument(
        "--split", default="test", help="what is scored: train, valid or test (default: test)"
    )
    parser.add_argument("--paper", choices=DATASETS, help="print the paper's figures on this dataset, too")
    parser.add_argument("--labeller", metavar="MODEL", help="model directory that gives the weak boxes")
    parser.add_argument("--phrases", metavar="URI", help="prepared phrase dataset the labeller begins with")
    return parser.parse_known_args(argv)


def main(argv: list[str]) -> None:
    """Run what is missing of a table and print it.

    Raises:
        MnerqgError: recipe, settings, datasets or labeller are not as they should be, or a run failed.
    """
    arguments, overrides = parse_arguments(argv)
    name = f"table{arguments.table}" if arguments.table else f"figure{arguments.figure}"
    table, output = TABLES[name], storage.absolute(arguments.output)
    runs = plan_runs(table, arguments.config, overrides, parse_seeds(arguments.seeds), output)
    labels: list[Step] = []
    if any(one.needs_weak_boxes for one in runs):
        labels = plan_labels(arguments, overrides, output, runs)
    # Whatever can be refused is refused before hours of training.
    count_posts(arguments.data, arguments.split)
    ray.init(ignore_reinit_error=True)
    steps = [*labels, *(plan_run(one, table, arguments.data, arguments.split, output) for one in runs)]
    do_steps(steps)
    scored: dict[str, list[ScoredRun]] = {}
    for one in runs:
        scored.setdefault(one.system, []).append(read_scores(one, table, arguments.split))
    quality = _quality_of_labels(output, arguments.split) if labels else None
    record = table_record(table, scored, arguments.paper, quality)
    storage.write_text(storage.join(output, f"{name}.json"), json.dumps(record, indent=2) + "\n")
    storage.write_text(storage.join(output, f"{name}.md"), to_markdown(record))
    print(f"\n{to_markdown(record)}\nwritten: {storage.join(output, name)}.md and .json")


def parse_seeds(text: str) -> list[int]:
    """The numbers of `0,1,2`. Raises ConfigError for anything else."""
    try:
        seeds = [int(part) for part in text.split(",")]
    except ValueError:
        raise ConfigError(f"--seeds is {text!r}; give integers with commas between, such as 0,1,2") from None
    if len(set(seeds)) < len(seeds):
        raise ConfigError(f"--seeds {text} names a seed twice; name each once")
    return seeds


# ---- what there is to run --------------------------------------------------------------------------


def plan_runs(
    table: PaperTable, recipes: Sequence[Path], overrides: Sequence[str], seeds: Sequence[int], output: str
) -> list[SystemRun]:
    """The runs of a table, system by system.

    Raises:
        ConfigError: a setting that is wrong, or that takes from a system what it is named for.
    """
    if any(argument.partition("=")[0] == "--train.seed" for argument in overrides):
        raise ConfigError("--train.seed is given; name the seeds of all runs as --seeds 0,1,2")
    runs = []
    for system in (row.system for row in table.rows):
        for seed in seeds:
            settings = [*overrides, f"--train.seed={seed}"]
            config = load_system(system, recipes, settings)
            # Such as the query style of the recipe itself: what is the same need not be trained twice.
            is_oracle = config == load_files(Config, [*recipes, _variant("oracle")], settings)
            folder = storage.join(output, "runs", f"{'oracle' if is_oracle else system}-seed{seed}")
            runs.append(SystemRun(system, config, folder))
    return runs


def load_system(system: str, recipes: Sequence[Path], settings: Sequence[str]) -> Config:
    """The recipe with a system's variant and settings.

    Raises:
        ConfigError: a setting that is wrong, or that takes back what the variant says.
    """
    variant = _variant(system)
    config = load_files(Config, [*recipes, variant], settings)
    for key, wanted in _leaves(yaml.safe_load(variant.read_text(encoding="utf-8"))):
        value: Any = config
        for part in key.split("."):
            value = getattr(value, part)
        if value != wanted:
            raise ConfigError(
                f"--{key} {value} contradicts {variant}, which sets it to {wanted}; leave it out, or run "
                "jobs/train.py with it"
            )
    return config


def _variant(system: str) -> Path:
    return CONFIGS / "variants" / f"{system}.yaml"


def _leaves(values: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, dict):
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def plan_labels(
    arguments: argparse.Namespace, overrides: Sequence[str], output: str, runs: Sequence[SystemRun]
) -> list[Step]:
    """The steps to a dataset with weak boxes: a labeller, unless one is given, and its labels.

    Raises:
        ConfigError: a wrong setting, or there are labels of another labeller.
    """
    steps: list[Step] = []
    first = ["--train.boxed_share", str(LABELLER_SHARE), *overrides, "--train.seed=0"]
    trained = storage.join(output, "runs", "labeller")
    phrases_trained = storage.join(output, "runs", "labeller-phrases")
    if arguments.labeller is None and arguments.phrases is not None:
        settings = [*overrides, "--train.seed=0", f"--queries={CONFIGS / 'queries' / 'phrase.yaml'}"]
        config = load_system(LABELLER, arguments.config, settings)
        count_posts(arguments.phrases, "train")
        steps.append(plan_training("FA-VG on phrases", config, arguments.phrases, phrases_trained))
        first.append(f"--train.start_from={storage.join(phrases_trained, 'best_grounding')}")
    config = load_system(LABELLER, arguments.config, first)
    if arguments.labeller is None:
        steps.append(plan_training("the labeller", config, arguments.data, trained))
    model = storage.absolute(arguments.labeller or storage.join(trained, "best_grounding"))
    labelled = storage.join(output, "labelled")
    _check_labels(labelled, model)

    def label_and_check() -> None:
        label(model, arguments.data, labelled, ActorsConfig(**_actors(config)))
        for one in runs:  # now, and not after hours of training others
            if one.needs_weak_boxes:
                check_boxes(one.config, labelled)

    steps.append(Step(f"weak boxes of {model}", label_and_check, is_labelled(labelled)))
    return steps


def _quality_of_labels(output: str, split: str) -> float:
    """Accu@0.5 of the weak boxes of the posts that are scored."""
    labels = json.loads(storage.read_text(storage.join(output, "labelled", LABELS_FILE)))
    return float(labels["splits"][split]["accuracy_50"])


def _check_labels(labelled: str, model: str) -> None:
    if is_labelled(labelled):
        there = json.loads(storage.read_text(storage.join(labelled, LABELS_FILE)))["model"]
        if there != model:
            raise ConfigError(
                f"{labelled} holds the weak boxes of {there}, not of {model}; give --labeller {there}, or "
                "another --output"
            )


def plan_training(what: str, config: Config, data: str, folder: str) -> Step:
    """A training whose model is not scored."""
    return Step(f"train {what}", lambda: train(config, data, folder), is_model(storage.join(folder, "last")))


def plan_run(one: SystemRun, table: PaperTable, data: str, split: str, output: str) -> Step:
    """Training and scoring of a system; on the labelled dataset where it needs weak boxes."""
    source = storage.join(output, "labelled") if one.needs_weak_boxes else data
    scores = scores_folder(one, table, split)

    def train_and_score() -> None:
        train(one.config, source, one.folder)
        if _is_scored(scores, source, split):
            return
        model = storage.join(one.folder, table.model)
        print(f"scoring {model} on {split}", flush=True)
        found, per_post = evaluate(model, source, split, ActorsConfig(**_actors(one.config)))
        write_per_post(storage.join(scores, PER_POST_FILE), per_post)
        write_scores(storage.join(scores, SCORES_FILE), found)  # the last: what is there is complete

    name = storage.path_of(one.folder).rsplit("/", 1)[-1]
    return Step(f"train and score {name}", train_and_score, _is_scored(scores, source, split))


def _is_scored(scores: str, source: str, split: str) -> bool:
    """Whether the scores are there, and of the posts that are there now."""
    there = storage.join(scores, SCORES_FILE)
    if not storage.exists(there):
        return False
    try:
        now = fingerprint(source, split)
    except DataError:
        return False  # weak boxes that were deleted: they are written before
    return bool(json.loads(storage.read_text(there))["data"] == now)


def scores_folder(one: SystemRun, table: PaperTable, split: str) -> str:
    """Where the scores of a run's model on a split lie: tables differ in the model, and share the run."""
    return storage.join(one.folder, "scores", f"{table.model}-{split}")


def _actors(config: Config) -> dict[str, Any]:
    """Models answer where they are trained: as many actors as workers at the least, with the same resources."""
    settings = config.train
    workers = settings.workers if isinstance(settings.workers, int) else settings.workers[0]
    return {
        "actors": workers,
        "cpus_per_actor": settings.cpus_per_worker,
        "gpus_per_actor": settings.gpus_per_worker,
    }


# ---- running and reading it ------------------------------------------------------------------------


def do_steps(steps: Sequence[Step]) -> None:
    """One step after another, with a line before each that is not done yet."""
    left = sum(not step.is_done for step in steps)
    for step in steps:
        if not step.is_done:
            left -= 1
            print(f"=== {step.what} ({left} left after it) ===", flush=True)
        step.do()


def read_scores(one: SystemRun, table: PaperTable, split: str) -> ScoredRun:
    """What a run scored, as `plan_run` has left it."""
    folder = scores_folder(one, table, split)
    scores = json.loads(storage.read_text(storage.join(folder, SCORES_FILE)))
    (entry,) = storage.list_files(storage.join(folder, PER_POST_FILE))
    with open_parquet(entry) as per_post:
        return ScoredRun(one.config.train.seed, scores, per_post.read())


if __name__ == "__main__":
    run(main)
