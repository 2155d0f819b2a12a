"""jobs/experiments.py: what a table needs, that it is done once and in order, and one table for real."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from jobs import experiments
from mnerqg.config import ActorsConfig, Config
from mnerqg.datasets.prepared import LABELS_FILE, write_split
from mnerqg.distributed.evaluation import per_post_table
from mnerqg.errors import ConfigError, DataError
from mnerqg.io import storage
from mnerqg.schema import Box, Post, Span
from mnerqg.scoring.metrics import Counts
from mnerqg.scoring.tables import TABLES
from tests.builders import image_bytes

DEMO = Path(__file__).parents[2] / "jobs" / "configs" / "demo.yaml"
OFFLINE = DEMO.with_name("offline.yaml")


def planned(name: str, recipe: Path, *overrides: str) -> dict[str, experiments.SystemRun]:
    runs = experiments.plan_runs(TABLES[name], [recipe], overrides, [3], "/out")
    return {run.system: run for run in runs}


def test_every_run_is_recipe_variant_settings_and_seed() -> None:
    runs = planned("table3", OFFLINE, "--train.epochs", "1")
    assert [run.config.model.existence for run in runs.values()] == [True, True, False, False]
    assert [run.config.model.grounding for run in runs.values()] == [True, False, True, False]
    assert {(run.config.train.epochs, run.config.train.seed) for run in runs.values()} == {(1, 3)}
    assert runs["no_existence"].folder == "/out/runs/no_existence-seed3"
    assert not any(run.needs_weak_boxes for run in runs.values())


@pytest.mark.parametrize(
    ("name", "weak"),
    [
        ("table2", {"weak"}),
        ("table4", {"weak", "fa_vg_weak"}),
        ("table5", {"weak", "two_stage"}),
        ("figure4", set()),
    ],
)
def test_who_needs_weak_boxes(name: str, weak: set[str]) -> None:
    assert {run.system for run in planned(name, DEMO).values() if run.needs_weak_boxes} == weak


@pytest.mark.parametrize(("recipe", "style"), [(DEMO, "keyword"), (OFFLINE, "keyword_annotation")])
def test_the_recipes_own_query_style_is_not_trained_twice(recipe: Path, style: str) -> None:
    folders = {name: run.folder for name, run in planned("figure4", recipe).items()}
    assert folders.pop(f"query_{style}") == "/out/runs/oracle-seed3"
    assert set(folders.values()) == {f"/out/runs/{name}-seed3" for name in folders}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--table", "3", "--train.lrr", "1"], "unknown key train.lrr; allowed here: "),
        (
            ["--table", "3", "--train.seed=4"],
            "--train.seed is given; name the seeds of all runs as --seeds 0,1",
        ),
        (["--table", "3", "--seeds", "0,x"], "--seeds is '0,x'; give integers"),
        (["--table", "3", "--seeds", "0,1,0"], "--seeds 0,1,0 names a seed twice"),
        (["--table", "3", "--train.boxes", "weak"], "--train.boxes weak contradicts "),
        (["--table", "3", "--model.grounding", "true"], "--model.grounding True contradicts "),
        (["--table", "2", "--model.inputs", "text_picture"], "{variants}/bert.yaml: model.tagger is bio; "),
        (["--figure", "4", "--queries", "keyword"], "--queries keyword contradicts "),
        (["--table", "3", "--config", "nowhere.yaml"], "--config nowhere.yaml does not exist"),
    ],
)
def test_a_bad_command_is_one_line(tmp_path: Path, arguments: list[str], message: str) -> None:
    places = ["--data", str(tmp_path / "data"), "--output", str(tmp_path / "out")]
    with pytest.raises(ConfigError) as caught:
        experiments.main(["--config", str(DEMO), *places, *arguments])
    assert str(caught.value).startswith(message.format(variants=experiments.CONFIGS / "variants"))
    assert "\n" not in str(caught.value)


def test_a_split_that_is_not_there_is_found_before_any_training(tmp_path: Path) -> None:
    places = ["--data", str(tmp_path / "data"), "--output", str(tmp_path / "out")]
    with pytest.raises(DataError, match="test holds no Parquet files"):
        experiments.main(["--config", str(DEMO), *places, "--table", "3"])
    assert not (tmp_path / "out").exists()


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
    monkeypatch.setattr(experiments.ray, "init", lambda **_: None)
    monkeypatch.setattr(experiments, "check_boxes", lambda _, data: seen.append(("check", name_of(data))))
    monkeypatch.setattr(experiments, "count_posts", lambda *_: 5)
    monkeypatch.setattr(experiments, "fingerprint", lambda *_: "as prepared first")
    return seen


def name_of(uri: str) -> str:
    return uri.rsplit("/", 1)[-1]


def test_grounding_with_a_labeller_that_begins_with_phrases(
    calls: list[tuple[Any, ...]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["--table", "4", "--config", str(OFFLINE), "--data", "/posts", "--output", str(tmp_path)]
    command += ["--split", "valid", "--paper", "twitter2015", "--phrases", "/phrases"]
    experiments.main(command)
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
    record = json.loads((tmp_path / "table4.json").read_text())
    assert [row["paper"] for row in record["rows"]] == [50.83, 54.86, 63.94, 67.41]
    assert "Accu@0.5 of the weak boxes of these posts is 75.00." in (tmp_path / "table4.md").read_text()

    # Nothing is done twice; another table and another seed take what is there.
    calls.clear()
    experiments.main(command)
    assert {call[0] for call in calls} == {"check"}
    assert "===" not in capsys.readouterr().out
    experiments.main([*command, "--seeds", "0,1"])
    assert [call[1] for call in calls if call[0] == "train"] == [
        *("fa_vg_weak-seed1", "weak-seed1", "fa_vg-seed1", "oracle-seed1")
    ]
    calls.clear()
    experiments.main(["--table", "5", *command[2:]])
    assert [call for call in calls if call[0] != "check"] == [
        ("train", "two_stage-seed0", "labelled", "", 1.0),
        ("score", "two_stage-seed0", "best", "labelled", "valid"),
        ("score", "weak-seed0", "best", "labelled", "valid"),
    ]


def test_a_labeller_of_ones_own(calls: list[tuple[Any, ...]], tmp_path: Path) -> None:
    command = ["--table", "5", "--config", str(DEMO), "--data", "/posts", "--output", str(tmp_path)]
    experiments.main([*command, "--labeller", "/models/mine"])
    assert calls[0] == ("label", "posts", "models", "mine")
    assert not any(call[:2] == ("train", "labeller") for call in calls)
    with pytest.raises(
        ConfigError, match=r"holds the weak boxes of /models/mine, not of .*; give --labeller"
    ):
        experiments.main(command)


def test_it_goes_on_where_it_was_killed(
    calls: list[tuple[Any, ...]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = ["--table", "3", "--config", str(DEMO), "--data", "/posts", "--output", str(tmp_path)]

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(experiments, "write_scores", killed)
        with pytest.raises(KeyboardInterrupt):
            experiments.main(command)
    assert [call[0] for call in calls] == ["train", "score"]
    calls.clear()
    experiments.main(command)
    assert next(call[1] for call in calls if call[0] == "score") == "oracle-seed0"
    assert [call[0] for call in calls].count("train") == 3


def test_posts_prepared_anew_are_scored_anew(
    calls: list[tuple[Any, ...]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = ["--figure", "4", "--config", str(OFFLINE), "--data", "/posts", "--output", str(tmp_path)]
    experiments.main(command)
    systems = [call[1] for call in calls if call[0] == "score"]
    assert len(systems) == 4
    calls.clear()
    monkeypatch.setattr(experiments, "fingerprint", lambda *_: "as prepared now")
    experiments.main(command)
    assert [call[:2] for call in calls] == [("score", system) for system in systems]


# ---- for real ----------------------------------------------------------------------------------------------


def write_posts(folder: Path) -> None:
    for split, count in (("train", 12), ("valid", 6)):
        posts = (
            Post(
                post_id=f"{split}{number}",
                text="Ada visits Oslo",
                image=image_bytes(colour=number),
                entities=(Span(0, 3, "PER"), Span(11, 15, "LOC")),
                boxes=(Box("PER", 4, 4, 30, 20),),
                boxes_annotated=True,
            )
            for number in range(count)
        )
        write_split(posts, str(folder / split), rows_per_file=20)


def modified(folder: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


@pytest.mark.slow
def test_two_stages_for_real(
    ray_cluster: None, tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_posts(tmp_path / "data")
    recipe, output = tmp_path / "tiny.yaml", tmp_path / "out"
    recipe.write_text(f"""
queries: keyword
model: {{encoder: {tiny_model.parent / "encoder"}, max_length: 64, backbone: resnet10t, width: 32, heads: 4,
        pyramid_width: 32, pyramid_depth: 1, image_side: 64}}
train: {{epochs: 1, posts_per_step: 4, precision: fp32, gpus_per_worker: 0, cpus_per_worker: 0.5,
        threads_per_worker: 1}}
""")
    command = ["--table", "5", "--config", str(recipe), "--data", str(tmp_path / "data")]
    command += ["--output", str(output), "--split", "valid", "--train.boxed_share", "1.0"]
    # The boxes of a labeller that has seen a dozen posts.
    command += ["--train.min_weak_score", "0"]
    experiments.main([*command, "--seeds", "1"])
    printed = capsys.readouterr().out
    assert "=== train the labeller (3 left after it) ===" in printed
    assert (output / "table5.md").read_text().strip() in printed
    record = json.loads((output / "table5.json").read_text())
    assert [(row["system"], row["seeds"]) for row in record["rows"]] == [
        ("two_stage", [1]),
        ("weak", [1]),
    ]
    assert record["posts"] == 6
    assert 0 < record["rows"][0]["p_over_posts"] <= 1

    before = modified(output / "runs") | modified(output / "labelled")
    experiments.main([*command, "--seeds", "1"])
    assert modified(output / "runs") | modified(output / "labelled") == before
    assert "===" not in capsys.readouterr().out
    assert json.loads((output / "table5.json").read_text()) == record
