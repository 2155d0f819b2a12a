"""cluster/Dockerfile: linted, and everything it copies is there and goes to the build."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from mnerqg.distributed.session import IDLE_WORKERS

ROOT = Path(__file__).parents[2]
DOCKERFILE = ROOT / "cluster" / "Dockerfile"


def lint(text: str) -> subprocess.CompletedProcess[str]:
    command = [str(Path(sys.executable).with_name("hadolint")), "--no-color", "-"]
    return subprocess.run(command, input=text, capture_output=True, text=True)


def test_hadolint_finds_nothing() -> None:
    found = lint(DOCKERFILE.read_text())
    assert (found.returncode, found.stdout) == (0, "")


@pytest.mark.parametrize(
    ("line", "typo"),
    [
        ("USER 1000", "USR 1000"),
        ("COPY jobs jobs", "COPY jobs"),
        ("WORKDIR /opt/mnerqg", "WORKDIR opt/mnerqg"),
        ("--no-install-recommends ", ""),
        ("USER 1000", "USER root"),
    ],
)
def test_a_typo_is_caught(line: str, typo: str) -> None:
    text = DOCKERFILE.read_text()
    assert line in text
    assert lint(text.replace(line, typo)).returncode != 0


def test_nodes_of_a_cluster_keep_idle_workers_as_one_machine_does() -> None:
    assert "=".join(IDLE_WORKERS) in DOCKERFILE.read_text()


def test_what_is_copied_is_there_and_not_ignored() -> None:
    allowed = {
        line.removeprefix("!")
        for line in (ROOT / ".dockerignore").read_text().splitlines()
        if line.startswith("!")
    }
    sources = set()
    for line in re.findall(r"^COPY (.+)$", DOCKERFILE.read_text(), re.MULTILINE):
        sources |= set(line.split()[:-1])
    assert sources
    for source in sources:
        assert (ROOT / source).exists(), source
        assert source in allowed or source.partition("/")[0] in allowed, f".dockerignore leaves out {source}"
    assert all((ROOT / name).exists() for name in allowed)


def test_login_shells_find_ray() -> None:
    """Ray runs `bash --login` in the container, and /etc/profile sets PATH: programs must lie where it looks."""
    assert not re.search(r"PATH=|venv", re.sub(r"^#.*", "", DOCKERFILE.read_text(), flags=re.MULTILINE))


def test_it_is_pinned_and_not_root() -> None:
    text = DOCKERFILE.read_text()
    (python,) = re.findall(r"^ARG PYTHON=(\S+)$", text, re.MULTILINE)
    assert re.fullmatch(r"python:3\.11\.\d+-slim-bookworm", python)
    assert all(
        "--constraint constraints.txt" in line or "--no-deps" in line
        for line in re.findall(r"pip install.*", text)
    )
    assert (
        re.findall(r"^USER (\S+)$", text, re.MULTILINE)[-1] == "1000"
    )  # Kubernetes takes no name for "not root"
