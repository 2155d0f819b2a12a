"""The command line of jobs/train.py: errors are one line and exit code 2, before any cluster starts."""

from pathlib import Path

import pytest

from tests.commands import call

ROOT = Path(__file__).parents[2]
DEMO, VARIANTS = ROOT / "jobs" / "configs" / "demo.yaml", ROOT / "jobs" / "configs" / "variants"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--config", "nowhere.yaml"],
            "error: --config nowhere.yaml does not exist; recipes in jobs/configs: ",
        ),
        (
            ["--config", str(DEMO), "--train.lrr", "1"],
            "error: unknown key train.lrr; allowed here: epochs, ",
        ),
        (
            ["--config", str(DEMO), "--config", "nowhere.yaml"],
            "error: --config nowhere.yaml does not exist; recipes in jobs/configs: ",
        ),
        (
            ["--config", str(DEMO), "--config", str(VARIANTS / "text.yaml"), "--model.grounding", "true"],
            f"error: {VARIANTS / 'text.yaml'}: model.grounding is true, but inputs is text; ",
        ),
    ],
)
def test_a_bad_command_is_one_line(tmp_path: Path, arguments: list[str], message: str) -> None:
    done = call("train", *arguments, "--data", str(tmp_path / "d"), "--output", str(tmp_path / "o"))
    assert done.returncode == 2
    assert done.stderr.startswith(message)
    assert len(done.stderr.splitlines()) == 1
    assert not (tmp_path / "o").exists()
