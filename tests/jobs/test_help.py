"""`--help` of every job: all settings, each once with its default, in a hundred columns."""

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from pydantic import BaseModel

from mnerqg.config import Config
from mnerqg.config_jobs import ActorsConfig, ImportConfig, ReportConfig, TagConfig
from tests.commands import call

JOBS = Path(__file__).parents[2] / "jobs"
SETTINGS: dict[str, type[BaseModel] | None] = {
    "train": Config,
    "experiments": Config,
    "tag": TagConfig,
    "benchmark": TagConfig,
    "evaluate": ActorsConfig,
    "label": ActorsConfig,
    "report": ReportConfig,
    "exchange": ImportConfig,
    "prepare": None,
    "demo": None,
}


def fields(section: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, object]]:
    """Keys and defaults of the settings of a section and of its sections."""
    for name, field in section.model_fields.items():
        default = field.get_default()
        if isinstance(default, BaseModel):
            yield from fields(type(default), f"{prefix}{name}.")
        else:
            yield prefix + name, default


def printed(job: str, *arguments: str) -> str:
    done = call(job, *arguments, "--help")
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def test_every_job_that_takes_settings_is_tested() -> None:
    jobs = {path.stem for path in JOBS.glob("*.py")}
    assert jobs == set(SETTINGS)
    takers = {job for job in jobs if "parse_known_args" in (JOBS / f"{job}.py").read_text(encoding="utf-8")}
    assert takers == {job for job, section in SETTINGS.items() if section is not None}


@pytest.mark.parametrize("job", SETTINGS)
def test_the_help_of_a_job(job: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "60")  # of the terminal, which are not asked
    text = printed(job)
    assert text.startswith(f"usage: jobs/{job}.py ")
    assert max(map(len, text.splitlines())) <= 100
    section = SETTINGS[job]
    expected = dict(fields(section)) if section is not None else {}
    shown = re.findall(  # with a meaning below
        r"^  --(\S+)  \([^()]+; default:\s+(.*?)\)\n {6}\S", text, re.MULTILINE | re.DOTALL
    )
    assert sorted(key for key, _ in shown) == sorted(expected)
    for key, default in shown:
        value = expected[key]
        words = {None: "null", True: "true", False: "false"}
        if isinstance(value, tuple):
            assert default.startswith("[")
        else:
            assert default == (words[value] if value is None or isinstance(value, bool) else str(value)), key


def test_sections_stand_together_as_in_the_yaml() -> None:
    text = printed("train")
    heads = re.findall(r"^(\w+): \S", text, re.MULTILINE)
    assert heads[1:] == ["model", "loss", "decode", "augment", "train"]  # the first one is usage
    for below in re.split(r"^\w+: ", text, flags=re.MULTILINE)[2:]:
        assert len({key.partition(".")[0] for key in re.findall(r"^  --(\S+)  \(", below, re.MULTILINE)}) == 1


@pytest.mark.parametrize(
    ("job", "command", "options"),
    [
        ("prepare", "twitter", ("--root", "--output", "--splits", "--overwrite")),
        ("prepare", "flickr30k", ("--root", "--output", "--splits", "--overwrite")),
        ("benchmark", "host", ("--model", "--batch-posts", "--rounds", "--output")),
        ("benchmark", "tag", ("--model", "--input", "--posts", "--config", "--output")),
        ("benchmark", "train", ("--data", "--config", "--model", "--steps", "--output")),
        ("benchmark", "fetch", ("--input", "--pictures", "--concurrency", "--output")),
        ("benchmark", "scale", ("--model", "--nodes", "--rows", "--here", "--output")),
        ("exchange", "export", ("--tags", "--sample", "--format", "--output")),
        ("exchange", "import", ("--input", "--valid", "--format", "--output")),
    ],
)
def test_the_help_of_a_command_of_a_job(job: str, command: str, options: tuple[str, ...]) -> None:
    text = printed(job, command)
    assert max(map(len, text.splitlines())) <= 100
    for option in options:
        assert f"\n  {option}" in text


def test_a_user_does_not_wait_for_what_the_help_does_not_need() -> None:
    """torch costs seven seconds of two cores, ray one; the driver of a tagging run does without torch to its end."""
    code = (
        "import sys, jobs.train, jobs.evaluate, jobs.label; assert not {'torch', 'ray'} & set(sys.modules)\n"
        "import jobs.report, jobs.tag, jobs.experiments; assert not {'torch', 'ray'} & set(sys.modules)\n"
        "import mnerqg.distributed.tagging; assert not {'torch', 'transformers'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=JOBS.parent)
