"""The wheel alone: its commands and recipes work where there is no checkout."""

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tomllib
import venv
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SCRIPTS = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["scripts"]
LEFT_OUT = shutil.ignore_patterns(".*", "build", "dist", "*.egg-info", "tests", "__pycache__", "demo_output")


def test_every_job_is_a_command() -> None:
    jobs = {
        f"mnerqg-{path.stem}": f"mnerqg_jobs.{path.stem}:command" for path in (ROOT / "jobs").glob("*.py")
    }
    assert {"mnerqg": "mnerqg.__main__:command", **jobs} == SCRIPTS


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bin of an environment with the wheel, and with the dependencies of this one but nothing else of it."""
    folder = tmp_path_factory.mktemp("wheel")
    shutil.copytree(ROOT, folder / "source", ignore=LEFT_OUT)
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder / "dist")]
    subprocess.run([*build, str(folder / "source")], check=True, capture_output=True)
    (wheel,) = (folder / "dist").glob("*.whl")
    venv.create(folder / "venv", with_pip=False, symlinks=True)
    (site,) = (folder / "venv").glob("lib/python*/site-packages")
    # A line of a .pth adds the folder alone: what the .pth there would add, such as this checkout, stays out.
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    pip = [sys.executable, "-m", "pip", "--python", str(folder / "venv" / "bin" / "python")]
    subprocess.run([*pip, "install", "--quiet", "--no-deps", "--no-index", str(wheel)], check=True)
    return folder / "venv" / "bin"


def call(installed: Path, command: str, *arguments: str) -> "subprocess.CompletedProcess[str]":
    """One of the commands, in an empty folder and without a way to the checkout."""
    folder = installed.parents[1] / "elsewhere"
    folder.mkdir(exist_ok=True)
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return subprocess.run(
        [installed / command, *arguments],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.slow
@pytest.mark.parametrize("command", sorted(SCRIPTS))
def test_the_help_of_a_command(installed: Path, command: str) -> None:
    done = call(installed, command, "--help")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"usage: {command} ")


@pytest.mark.slow
def test_recipes_go_by_their_names(installed: Path) -> None:
    options = ["--data", "nowhere", "--output", "run"]
    done = call(installed, "mnerqg-train", "--config", "offline", "--config", "variants/text", *options)
    assert done.returncode == 2
    assert re.search(r"^error: .*nowhere/train holds no Parquet files", done.stderr, re.MULTILINE), (
        done.stderr
    )
    done = call(installed, "mnerqg-train", "--config", "offlin", *options)
    assert (
        done.stderr
        == "error: --config offlin does not exist; recipes in jobs/configs: demo, mpnet, offline, paper\n"
    )


@pytest.mark.slow
def test_nothing_of_it_can_clash(installed: Path) -> None:
    (site,) = installed.parent.glob("lib/python*/site-packages")
    names = {path.name for path in site.iterdir() if not path.name.startswith(("mnerqg-", "dependencies"))}
    assert names == {"mnerqg", "mnerqg_jobs"}
