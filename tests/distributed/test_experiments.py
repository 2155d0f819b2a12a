"""What a table needs, that it is done once and in order; one for real is made in tests/jobs/test_experiments.py."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from mnerqg.config import Config
from mnerqg.config_jobs import ActorsConfig
from mnerqg.datasets.prepared import LABELS_FILE
from mnerqg.distributed import experiments
from mnerqg.distributed.evaluation import per_post_table
from mnerqg.distributed.experiments import Experiment, SystemRun, make_table, plan_runs, plan_table
from mnerqg.errors import ConfigError
from mnerqg.io import storage
from mnerqg.scoring.metrics import Counts
from mnerqg.scoring.tables import TABLES

CONFIGS = Path(__file__).parents[2] / "jobs" / "configs"
DEMO, OFFLINE, PAPER = (CONFIGS / f"{name}.yaml" for name in ("demo", "offline", "paper"))


def experiment(name: str, recipe: Path, settings: Sequence[str] = (), **changes: Any) -> Experiment:
    table = TABLES[name]
    given: dict[str, Any] = {
        "split": table.split,
        "recipes": [recipe],
        "settings": settings,
        "seeds": [3],
        "configs": CONFIGS,
        "data": "/posts",
        "output": "/out",
    }
    return Experiment(table=table, **given | changes)


def planned(name: str, recipe: Path, *settings: str) -> dict[str, SystemRun]:
    return {run.system: run for run in plan_runs(experiment(name, recipe, settings))}


def test_every_run_is_recipe_variant_settings_and_seed() -> None:
    runs = planned("table3", PAPER, "--train.epochs", "1")
    assert {(run.config.train.epochs, run.config.train.seed) for run in runs.values()} == {(1, 3)}
    assert runs["no_ed_loss"].folder == "/out/runs/no_ed_loss-seed3"
    losses = {
        system: (run.config.loss.grounding_weight, run.config.loss.existence_weight)
        for system, run in runs.items()
    }
    assert losses == {
        "weak": (1, 1),
        "no_qg_loss": (0, 1),
        "no_ed_loss": (1, 0),
        "no_qg_ed_loss": (0, 0),
        "no_grounding": (1, 1),
    }
    # A loss is taken away and nothing else; in the row of our own the module, too.
    networks = {system: run.config.model for system, run in runs.items()}
    assert networks.pop("no_grounding") == networks["weak"].model_copy(update={"grounding": False})
    assert set(networks.values()) == {networks["weak"]}


def test_nothing_is_told_of_a_grounding_that_does_not_learn() -> None:
    runs = planned("table3", DEMO)
    told = {system: run.config.model.region_existence for system, run in runs.items()}
    assert told == {
        "weak": True,
        "no_qg_loss": False,
        "no_ed_loss": True,
        "no_qg_ed_loss": False,
        "no_grounding": False,
    }


@pytest.mark.parametrize(
    ("name", "weak"),
    [
        ("table2", {"weak"}),
        ("table3", {"weak", "no_ed_loss"}),
        ("table4", {"weak", "fa_vg_weak", "two_stage"}),
        ("table5", {"weak", "fa_vg_weak"}),
        ("figure4", {row.system for row in TABLES["figure4"].rows}),
    ],
)
def test_who_needs_weak_boxes(name: str, weak: set[str]) -> None:
    assert {run.system for run in planned(name, DEMO).values() if run.needs_weak_boxes} == weak


@pytest.mark.parametrize(("recipe", "style"), [(DEMO, "keyword"), (OFFLINE, "keyword_annotation")])
def test_the_recipes_own_query_style_is_not_trained_twice(recipe: Path, style: str) -> None:
    folders = {name: run.folder for name, run in planned("figure4", recipe).items()}
    assert folders.pop(f"query_{style}") == "/out/runs/weak-seed3"
    assert set(folders.values()) == {f"/out/runs/{name}-seed3" for name in folders}


def test_of_the_joint_model_the_best_grounding_is_scored_too() -> None:
    models = {system: run.models for system, run in planned("table4", DEMO).items()}
    assert models.pop("weak") == ("best", "best_grounding")
    assert set(models.values()) == {("best",)}
    assert {run.models for run in planned("table5", DEMO).values()} == {("best_grounding",)}


# ---- the order of things, with quick stand-ins for training, labelling and scoring -----------------------


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """What was trained, labelled and scored; each leaves behind what the real one does."""
    seen: list[tuple[Any, ...]] = []

    def train(config: Config, data: str, folder: str) -> None:
        if not storage.exists(f"{folder}/last"):
            start = (config.train.start_from or "").removesuffix("/best_grounding")
            seen.append(("train", *map(name_of, (folder, data)), name_of(start), config.train.boxed_share))
            storage.write_text(f"{folder}/last/model.json", "{}")

    def label(model: str, data: str, output: str, config: ActorsConfig) -> None:
        if not storage.exists(f"{output}/{LABELS_FILE}"):
            seen.append(("label", name_of(data), *model.split("/")[-2:]))
            splits = {split: {"accuracy_50": 0.75} for split in ("valid", "test")}
            storage.write_text(f"{output}/{LABELS_FILE}", json.dumps({"model": model, "splits": splits}))

    def evaluate(model: str, data: str, split: str, config: ActorsConfig) -> tuple[dict[str, Any], pa.Table]:
        seen.append(("score", *model.split("/")[-2:], name_of(data), split))
        posts = [(str(number), Counts(("PER",), posts=1)) for number in range(5)]
        counts = sum((counts for _, counts in posts), Counts(("PER",)))
        facts = {"types": ["PER"], "split": split, "data": experiments.fingerprint(data, split)}
        return {**facts, **counts.scores()}, per_post_table(posts)

    for function in (train, label, evaluate):
        monkeypatch.setattr(experiments, function.__name__, function)
    monkeypatch.setattr(experiments, "check_boxes", lambda _, data: seen.append(("check", name_of(data))))
    monkeypatch.setattr(experiments, "count_posts", lambda *_: 5)
    monkeypatch.setattr(experiments, "fingerprint", lambda *_: "as prepared first")
    return seen


def name_of(uri: str) -> str:
    return uri.rsplit("/", 1)[-1]


def make(name: str, recipe: Path, output: Path, dataset: str | None = None, **changes: Any) -> str:
    changes = {"seeds": [0], "output": str(output)} | changes
    return make_table(plan_table(experiment(name, recipe, **changes)), dataset)


def test_boxes_of_a_labeller_that_begins_with_phrases(
    calls: list[tuple[Any, ...]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: dict[str, Any] = {"recipe": OFFLINE, "output": tmp_path, "split": "valid", "phrases": "/phrases"}
    markdown = make("table5", dataset="twitter2015", **asked)
    assert calls == [
        ("train", "labeller-phrases", "phrases", "", 1.0),
        ("train", "labeller", "posts", "labeller-phrases", 0.1),
        ("label", "posts", "labeller", "best_grounding"),
        *[("check", "labelled")] * 2,
        ("train", "fa_vg_weak-seed0", "labelled", "", 1.0),
        ("score", "fa_vg_weak-seed0", "best_grounding", "labelled", "valid"),
        ("train", "weak-seed0", "labelled", "", 1.0),
        ("score", "weak-seed0", "best_grounding", "labelled", "valid"),
        ("train", "fa_vg-seed0", "posts", "", 1.0),
        ("score", "fa_vg-seed0", "best_grounding", "posts", "valid"),
        ("train", "oracle-seed0", "posts", "", 1.0),
        ("score", "oracle-seed0", "best_grounding", "posts", "valid"),
    ]
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("===")]
    assert lines[0] == "=== train FA-VG on phrases (6 left after it) ==="
    assert lines[-1] == "=== train and score oracle-seed0 (0 left after it) ==="
    record = json.loads((tmp_path / "table5.json").read_text())
    figures = [row["paper"]["accuracy_50"] for row in record["rows"]]
    assert figures == [50.83, 54.86, 63.94, 67.41, 68.69]
    assert (tmp_path / "table5.md").read_text() == markdown
    assert "Accu@0.5 of the weak boxes of these posts is 75.00." in markdown

    # Nothing is done twice; another table and another seed take what is there.
    calls.clear()
    make("table5", **asked)
    assert {call[0] for call in calls} == {"check"}
    assert "===" not in capsys.readouterr().out
    make("table5", seeds=[0, 1], **asked)
    assert [call[1] for call in calls if call[0] == "train"] == [
        *("fa_vg_weak-seed1", "weak-seed1", "fa_vg-seed1", "oracle-seed1")
    ]
    calls.clear()
    make("table4", **asked)
    assert [call for call in calls if call[0] != "check"] == [
        ("train", "text-seed0", "posts", "", 1.0),
        ("score", "text-seed0", "best", "posts", "valid"),
        ("train", "two_stage-seed0", "labelled", "", 1.0),
        ("score", "two_stage-seed0", "best", "labelled", "valid"),
        ("score", "fa_vg_weak-seed0", "best", "labelled", "valid"),
        ("score", "weak-seed0", "best", "labelled", "valid"),
    ]


def test_a_labeller_of_ones_own(calls: list[tuple[Any, ...]], tmp_path: Path) -> None:
    make("table4", DEMO, tmp_path, labeller="/models/mine")
    assert calls[0] == ("label", "posts", "models", "mine")
    assert not any(call[:2] == ("train", "labeller") for call in calls)
    with pytest.raises(
        ConfigError, match=r"holds the weak boxes of /models/mine, not of .*; give --labeller"
    ):
        make("table4", DEMO, tmp_path)


def test_it_goes_on_where_it_was_killed(
    calls: list[tuple[Any, ...]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(experiments, "write_scores", killed)
        with pytest.raises(KeyboardInterrupt):
            make("table4", DEMO, tmp_path)
    assert [call[:2] for call in calls if call[0] in ("train", "score")] == [
        *(("train", "labeller"), ("train", "text-seed0"), ("score", "text-seed0"))
    ]
    calls.clear()
    make("table4", DEMO, tmp_path)
    assert next(call[1] for call in calls if call[0] == "score") == "text-seed0"
    assert [call[0] for call in calls].count("train") == 3
    # Of the joint model one of two scores is missing.
    calls.clear()
    storage.delete_file(f"{tmp_path}/runs/weak-seed0/scores/best_grounding-test/{experiments.SCORES_FILE}")
    make("table4", DEMO, tmp_path)
    assert [call[:3] for call in calls if call[0] != "check"] == [("score", "weak-seed0", "best_grounding")]


def test_posts_prepared_anew_are_scored_anew(
    calls: list[tuple[Any, ...]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make("figure4", OFFLINE, tmp_path)
    scores = [call for call in calls if call[0] == "score"]
    assert len(scores) == 4
    assert {call[-1] for call in scores} == {"valid"}
    calls.clear()
    monkeypatch.setattr(experiments, "fingerprint", lambda *_: "as prepared now")
    make("figure4", OFFLINE, tmp_path)
    assert [call for call in calls if call[0] != "check"] == scores
