"""jobs/experiments.py: commands that are wrong, and a whole table for real."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from jobs import experiments
from mnerqg.errors import ConfigError, DataError, ModelError
from mnerqg.scoring.tables import TABLES
from tests.tiny_training import write_dataset, write_recipe

DEMO = experiments.CONFIGS / "demo.yaml"


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


@pytest.mark.parametrize(
    ("asked", "split"),
    [
        (["--table", "3"], "test"),
        (["--figure", "4"], "valid"),  # as in the paper
        (["--figure", "4", "--split", "train"], "train"),
    ],
)
def test_a_split_that_is_not_there_is_found_before_any_training(
    tmp_path: Path, asked: list[str], split: str
) -> None:
    places = ["--data", str(tmp_path / "data"), "--output", str(tmp_path / "out")]
    with pytest.raises(DataError, match=f"{split} holds no Parquet files"):
        experiments.main(["--config", str(DEMO), *places, *asked])
    assert not (tmp_path / "out").exists()


def test_an_encoder_that_cannot_work_is_found_before_any_cluster(
    no_cluster: None, tiny_model: Path, tmp_path: Path
) -> None:
    write_dataset(tmp_path / "data", train=2, valid=1)
    recipe = write_recipe(tmp_path / "tiny.yaml", tiny_model)
    places = ["--data", str(tmp_path / "data"), "--output", str(tmp_path / "out")]
    encoder = ["--model.encoder", str(tmp_path / "data")]
    with pytest.raises(ModelError, match=f"no tokenizer at {tmp_path}/data"):
        experiments.main(["--table", "3", "--split", "valid", "--config", str(recipe), *places, *encoder])
    assert not (tmp_path / "out").exists()


def modified(folder: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


@pytest.mark.slow
def test_a_table_for_real(
    ray_cluster: None,
    tiny_model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Table 4 without -Text, and the weak boxes of a labeller of one's own; then nothing is done twice."""
    rows = [row for row in TABLES["table4"].rows if row.system != "text"]
    monkeypatch.setitem(TABLES, "table4", replace(TABLES["table4"], rows=tuple(rows)))
    write_dataset(tmp_path / "data", train=8, valid=6)
    recipe = write_recipe(tmp_path / "tiny.yaml", tiny_model, epochs=1, posts_per_step=4, cpus_per_worker=0.5)
    output = tmp_path / "out"
    command = ["--table", "4", "--config", str(recipe), "--data", str(tmp_path / "data")]
    command += ["--output", str(output), "--split", "valid", "--paper", "twitter2015", "--seeds", "1"]
    # The boxes of a labeller that has learned nothing.
    command += ["--labeller", str(tiny_model), "--train.min_weak_score", "0"]
    experiments.main(command)
    printed = capsys.readouterr().out
    assert "=== train and score two_stage-seed1 (2 left after it) ===" in printed
    assert (output / "table4.md").read_text().strip() in printed
    assert "| MNER-VG, paper | 77.03 | 71.08 | 73.94 | – |" in printed
    record = json.loads((output / "table4.json").read_text())
    assert record["posts"] == 6
    two_stage, fa_vg, joint = (row for row in record["rows"] if row["system"])
    assert (two_stage["system"], fa_vg["system"], joint["system"]) == ("two_stage", "fa_vg_weak", "weak")
    assert {tuple(row["seeds"]) for row in (two_stage, fa_vg, joint)} == {(1,)}
    assert 0 < two_stage["p_values"]["f1"]["posts"] <= 1
    assert 0 < fa_vg["p_values"]["accuracy_50"]["posts"] <= 1
    assert two_stage["p_values"]["accuracy_50"] == fa_vg["p_values"]["f1"] == {"posts": None, "seeds": None}
    assert two_stage["figures"]["accuracy_50"] is fa_vg["figures"]["f1"] is None
    assert set(joint["largest"]) == {"accuracy_50", "accuracy_75", "mean_iou"}

    before = modified(output / "runs") | modified(output / "labelled")
    experiments.main(command)
    assert modified(output / "runs") | modified(output / "labelled") == before
    assert "===" not in capsys.readouterr().out
    assert json.loads((output / "table4.json").read_text()) == record
