"""A whole training in the world in which only the picture tells the type: the model reads pictures, or this fails."""

import json
from pathlib import Path

import pytest

from jobs import evaluate, prepare, train
from mnerqg.demo.ambiguous import write_ambiguous

CONFIGS = Path(__file__).resolve().parents[2] / "jobs" / "configs"

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("ambiguous")
    write_ambiguous(folder / "posts", seed=7)
    prepare.main(["twitter", "--root", str(folder / "posts"), "--output", str(folder / "data")])
    return str(folder / "data")


def scores_after(data: str, folder: Path, *settings: str) -> dict[str, float | dict[str, float]]:
    """Of the test split, with the best epoch's model."""
    recipe = ["--config", str(CONFIGS / "demo.yaml")]
    run = [
        "--data",
        data,
        "--output",
        str(folder / "run"),
        "--train.epochs=8",
        "--train.check_pictures=never",
    ]
    train.main([*recipe, *settings, *run])
    model = ["--model", str(folder / "run" / "best"), "--data", data, "--pictures", "true,shuffled,none"]
    evaluate.main([*model, "--output", str(folder / "scores.json")])
    found: dict[str, float | dict[str, float]] = json.loads((folder / "scores.json").read_text())
    return found


def test_the_joint_model_reads_pictures(ray_cluster: None, data: str, tmp_path: Path) -> None:
    found = scores_after(data, tmp_path, "--config", str(CONFIGS / "variants" / "aligned.yaml"))
    others = {name: scores["f1"] for name in ("shuffled", "none") if isinstance(scores := found[name], dict)}
    print(found["f1"], others)
    assert isinstance(found["f1"], float)
    assert found["f1"] >= 0.85
    assert others["shuffled"] <= 0.4
    assert others["none"] <= 0.4


def test_the_text_alone_does_not_tell(ray_cluster: None, data: str, tmp_path: Path) -> None:
    found = scores_after(data, tmp_path, "--config", str(CONFIGS / "variants" / "text.yaml"))
    assert isinstance(found["f1"], float)
    assert found["f1"] <= 0.4
