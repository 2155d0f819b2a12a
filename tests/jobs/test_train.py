"""The command line of jobs/train.py: errors are one line and exit code 2, before any cluster starts."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def _run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(ROOT / "jobs" / "train.py"), *arguments],
        capture_output=True,
        text=True,
        timeout=300,
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--config", "nowhere.yaml"],
            "error: --config nowhere.yaml does not exist; recipes in jobs/configs: ",
        ),
        (
            ["--config", str(ROOT / "jobs/configs/demo.yaml"), "--train.lrr", "1"],
            "error: unknown key train.lrr; allowed here: epochs, ",
        ),
    ],
)
def test_a_bad_command_is_one_line(tmp_path: Path, arguments: list[str], message: str) -> None:
    done = _run(*arguments, "--data", str(tmp_path / "d"), "--output", str(tmp_path / "o"))
    assert done.returncode == 2
    assert done.stderr.startswith(message)
    assert len(done.stderr.splitlines()) == 1
    assert not (tmp_path / "o").exists()
