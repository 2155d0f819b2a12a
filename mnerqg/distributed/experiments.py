"""A table of the paper from its systems: what is missing is trained and scored, one run after another.

What stands below the output, so that the same command resumes after a kill and tables share their runs:

    runs/SYSTEM-seedN/           a training, with the scores of its models in scores/MODEL-SPLIT
    runs/labeller                the FA-VG that gives the weak boxes, where no other model is named
    runs/labeller-phrases        what it begins with, where there is a phrase dataset
    labelled/                    the dataset with weak boxes
    TABLE.json TABLE.md          the table

Every system is the shared recipes, its file in `variants`, and the settings of the command line, which hold for all
runs. Manual boxes are what every system is scored against.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from mnerqg.config import Config
from mnerqg.config_files import load_files
from mnerqg.config_jobs import ActorsConfig
from mnerqg.datasets.prepared import LABELS_FILE, count_posts, fingerprint, is_labelled
from mnerqg.distributed.evaluation import evaluate, write_per_post, write_scores
from mnerqg.distributed.labelling import label
from mnerqg.distributed.training import check_boxes, train
from mnerqg.errors import ConfigError, DataError
from mnerqg.io import storage
from mnerqg.io.parquet import open_parquet
from mnerqg.model.files import is_model
from mnerqg.scoring.tables import Model, PaperTable, Row, ScoredRun, table_record, to_markdown

LABELLER = "fa_vg"
LABELLER_SHARE = 0.1  # of the posts with manual boxes [chosen]: weak boxes are for those who have few of them
SCORES_FILE, PER_POST_FILE = "evaluation.json", "per_post.parquet"


@dataclass(frozen=True)
class Experiment:
    """A table to be made, and what all of its runs share.

    Attributes:
        table: which.
        split: what is scored.
        recipes: files that all systems share.
        settings: `--section.key value ...`, over the recipes and variants.
        seeds: one run of every system for each.
        configs: the folder with `variants` and `queries`.
        data, output: URIs of the prepared dataset and of the folder of all experiments.
        labeller: URI of a model that gives the weak boxes; None: an FA-VG that learns the manual boxes of a tenth of
            the posts.
        phrases: URI of a phrase dataset that this FA-VG begins with, or None.
    """

    table: PaperTable
    split: str
    recipes: Sequence[Path]
    settings: Sequence[str]
    seeds: Sequence[int]
    configs: Path
    data: str
    output: str
    labeller: str | None = None
    phrases: str | None = None

    def place(self, *parts: str) -> str:
        """A URI below the output."""
        return storage.join(self.output, *parts)

    def variant(self, system: str) -> Path:
        """The file with what a system changes of the recipes."""
        return self.configs / "variants" / f"{system}.yaml"


@dataclass(frozen=True)
class SystemRun:
    """One system trained with one seed.

    `folder` is the output of its training, `models` are those of its models that are scored, the table's first.
    """

    system: str
    config: Config
    folder: str
    models: tuple[Model, ...]

    @property
    def needs_weak_boxes(self) -> bool:
        return self.config.train.boxes != "manual" or self.config.model.picture == "region"

    def scores_folder(self, model: Model, split: str) -> str:
        """Where the scores of one of its models on a split lie: tables differ in the model, and share the run."""
        return storage.join(self.folder, "scores", f"{model}-{split}")


@dataclass(frozen=True)
class Step:
    """Something that takes long, and whether it has been done: then `do` only checks that it was the same."""

    what: str
    do: Callable[[], object]
    is_done: bool


@dataclass(frozen=True)
class Plan:
    """All runs of a table, and the steps to the weak boxes that some of them need."""

    experiment: Experiment
    runs: Sequence[SystemRun]
    labels: Sequence[Step]


def plan_table(experiment: Experiment) -> Plan:
    """What there is to do; whatever can be refused is refused here, before hours of training.

    Raises:
        ConfigError, DataError, StorageError: recipe, settings, dataset or labels are not as they should be.
    """
    runs = plan_runs(experiment)
    labels = plan_labels(experiment, runs) if any(one.needs_weak_boxes for one in runs) else []
    count_posts(experiment.data, experiment.split)
    return Plan(experiment, runs, labels)


def make_table(plan: Plan, dataset: str | None) -> str:
    """Do what is missing, write the table as JSON and Markdown, and return the Markdown.

    Args:
        plan: of `plan_table`.
        dataset: see `table_record`.

    Raises:
        MnerqgError: a dataset or labeller is not as it should be, or a run failed; the same call goes on.
    """
    experiment, table = plan.experiment, plan.experiment.table
    do_steps([*plan.labels, *(plan_run(one, experiment) for one in plan.runs)])
    scored: dict[str, list[ScoredRun]] = {}
    for one in plan.runs:
        scored.setdefault(one.system, []).append(read_scores(one, experiment.split))
    quality = _quality_of_labels(experiment) if plan.labels else None
    record = table_record(table, scored, dataset, quality)
    markdown = to_markdown(record)
    storage.write_text(experiment.place(f"{table.name}.json"), json.dumps(record, indent=2) + "\n")
    storage.write_text(experiment.place(f"{table.name}.md"), markdown)
    return markdown


# ---- what there is to run --------------------------------------------------------------------------


def plan_runs(experiment: Experiment) -> list[SystemRun]:
    """The runs of a table, system by system.

    Raises:
        ConfigError: a setting that is wrong, or that takes from a system what it is named for.
    """
    if any(argument.partition("=")[0] == "--train.seed" for argument in experiment.settings):
        raise ConfigError("--train.seed is given; name the seeds of all runs as --seeds 0,1,2")
    return [_plan_row(experiment, row, seed) for row in experiment.table.rows for seed in experiment.seeds]


def _plan_row(experiment: Experiment, row: Row, seed: int) -> SystemRun:
    settings = [*experiment.settings, f"--train.seed={seed}"]
    config = load_system(experiment, row.system, settings)
    # Such as the query style of the recipe itself: what is the same need not be trained twice.
    joint = load_files(Config, [*experiment.recipes, experiment.variant("weak")], settings)
    name = "weak" if config == joint else row.system
    models: tuple[Model, ...] = (experiment.table.model,)
    if row.largest:
        models += ("best_grounding",)
    return SystemRun(row.system, config, experiment.place("runs", f"{name}-seed{seed}"), models)


def load_system(experiment: Experiment, system: str, settings: Sequence[str]) -> Config:
    """The recipe with a system's variant and settings.

    Raises:
        ConfigError: a setting that is wrong, or that takes back what the variant says.
    """
    variant = experiment.variant(system)
    config = load_files(Config, [*experiment.recipes, variant], settings)
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


def _leaves(values: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, dict):
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def plan_labels(experiment: Experiment, runs: Sequence[SystemRun]) -> list[Step]:
    """The steps to a dataset with weak boxes: a labeller, unless one is given, and its labels.

    Raises:
        ConfigError: a wrong setting, or there are labels of another labeller.
    """
    steps: list[Step] = []
    first = ["--train.boxed_share", str(LABELLER_SHARE), *experiment.settings, "--train.seed=0"]
    if experiment.labeller is None and experiment.phrases is not None:
        folder = experiment.place("runs", "labeller-phrases")
        steps.append(_plan_phrases(experiment, experiment.phrases, folder))
        first.append(f"--train.start_from={storage.join(folder, 'best_grounding')}")
    config = load_system(experiment, LABELLER, first)
    trained = experiment.place("runs", "labeller")
    if experiment.labeller is None:
        steps.append(plan_training("the labeller", config, experiment.data, trained))
    model = storage.absolute(experiment.labeller or storage.join(trained, "best_grounding"))
    labelled = experiment.place("labelled")
    _check_labels(labelled, model)

    def label_and_check() -> None:
        label(model, experiment.data, labelled, _actors(config))
        for one in runs:  # now, and not after hours of training others
            if one.needs_weak_boxes:
                check_boxes(one.config, labelled)

    steps.append(Step(f"weak boxes of {model}", label_and_check, is_labelled(labelled)))
    return steps


def _plan_phrases(experiment: Experiment, phrases: str, folder: str) -> Step:
    queries = experiment.configs / "queries" / "phrase.yaml"
    settings = [*experiment.settings, "--train.seed=0", f"--queries={queries}"]
    config = load_system(experiment, LABELLER, settings)
    count_posts(phrases, "train")
    return plan_training("FA-VG on phrases", config, phrases, folder)


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


def plan_run(one: SystemRun, experiment: Experiment) -> Step:
    """Training and scoring of a system; on the labelled dataset where it needs weak boxes."""
    split = experiment.split
    source = experiment.place("labelled") if one.needs_weak_boxes else experiment.data
    folders = {model: one.scores_folder(model, split) for model in one.models}

    def train_and_score() -> None:
        train(one.config, source, one.folder)
        for model, folder in folders.items():
            if not _is_scored(folder, source, split):
                score(one, model, source, split)

    name = storage.path_of(one.folder).rsplit("/", 1)[-1]
    is_done = all(_is_scored(folder, source, split) for folder in folders.values())
    return Step(f"train and score {name}", train_and_score, is_done)


def score(one: SystemRun, model: Model, source: str, split: str) -> None:
    """Score one of a run's models; the scores are written last: what is there is complete."""
    uri, folder = storage.join(one.folder, model), one.scores_folder(model, split)
    print(f"scoring {uri} on {split}", flush=True)
    found, per_post = evaluate(uri, source, split, _actors(one.config))
    write_per_post(storage.join(folder, PER_POST_FILE), per_post)
    write_scores(storage.join(folder, SCORES_FILE), found)


def _is_scored(folder: str, source: str, split: str) -> bool:
    """Whether the scores are there, and of the posts that are there now."""
    there = storage.join(folder, SCORES_FILE)
    if not storage.exists(there):
        return False
    try:
        now = fingerprint(source, split)
    except DataError:
        return False  # weak boxes that were deleted: they are written before
    return bool(json.loads(storage.read_text(there))["data"] == now)


def _actors(config: Config) -> ActorsConfig:
    """Models answer where they are trained: as many actors as workers at the least, with the same resources."""
    settings = config.train
    workers = settings.workers if isinstance(settings.workers, int) else settings.workers[0]
    return ActorsConfig(
        actors=workers,
        cpus_per_actor=settings.cpus_per_worker,
        gpus_per_actor=settings.gpus_per_worker,
    )


# ---- running and reading it ------------------------------------------------------------------------


def do_steps(steps: Sequence[Step]) -> None:
    """One step after another, with a line before each that is not done yet."""
    left = sum(not step.is_done for step in steps)
    for step in steps:
        if not step.is_done:
            left -= 1
            print(f"=== {step.what} ({left} left after it) ===", flush=True)
        step.do()


def read_scores(one: SystemRun, split: str) -> ScoredRun:
    """What a run scored, as `plan_run` has left it."""
    scores, *largest = [_read_scores(one.scores_folder(model, split)) for model in one.models]
    file = storage.join(one.scores_folder(one.models[0], split), PER_POST_FILE)
    (entry,) = storage.list_files(file)
    with open_parquet(entry) as per_post:
        return ScoredRun(one.config.train.seed, scores, per_post.read(), largest[0] if largest else None)


def _read_scores(folder: str) -> dict[str, Any]:
    return dict(json.loads(storage.read_text(storage.join(folder, SCORES_FILE))))


def _quality_of_labels(experiment: Experiment) -> float:
    """Accu@0.5 of the weak boxes of the posts that are scored."""
    labels = json.loads(storage.read_text(experiment.place("labelled", LABELS_FILE)))
    return float(labels["splits"][experiment.split]["accuracy_50"])
