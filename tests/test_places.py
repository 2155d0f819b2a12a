"""`~` is the home directory in whatever of a job is a path, with or without a shell."""

import ast
from pathlib import Path

import pytest

from mnerqg.config import Config
from mnerqg.config_files import load_config
from mnerqg.config_jobs import ActorsConfig, TagConfig
from mnerqg.places import local_place, place

JOBS = Path(__file__).resolve().parents[1] / "jobs"
NO_PATHS = {
    *(
        "--split",
        "--splits",
        "--seeds",
        "--seed",
        "--table",
        "--figure",
        "--paper",
        "--posts",
        "--world-only",
        "--ambiguous",
        "--pictures",
        "--concurrency",
        "--nodes",
        "--rows",
        "--here",
    ),
    *("--dry-run", "--restart", "--skip-damaged", "--overwrite", "--json"),
    *("--format", "--sample", "--offsets", "--valid", "text"),
}


@pytest.fixture(autouse=True)
def home(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/ada")


def test_home() -> None:
    assert (place("~/tags"), place("~")) == ("/home/ada/tags", "/home/ada")
    for same in ("a/~/b", "s3://bucket/~/a", "file:///~", "./~", "*.parquet"):
        assert place(same) == same
    assert local_place("~/a.yaml") == Path("/home/ada/a.yaml")


PROGRAMS = {path.stem: path for path in [*JOBS.glob("*.py"), JOBS.parent / "mnerqg" / "__main__.py"]}


@pytest.mark.parametrize("job", sorted(PROGRAMS))
def test_every_path_of_a_job(job: str) -> None:
    """Each option says that it is a path, or is known to be none."""
    tree = ast.parse(PROGRAMS[job].read_text(encoding="utf-8"))
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
    options = [
        node for node in calls if isinstance(node.func, ast.Attribute) and node.func.attr == "add_argument"
    ]
    for option in options:
        name = ast.literal_eval(option.args[0])
        kinds = [ast.unparse(keyword.value) for keyword in option.keywords if keyword.arg == "type"]
        takes_number = kinds in (["int"], ["float"])
        if name not in NO_PATHS and not takes_number:
            assert kinds in (["place"], ["local_place"]), name


def test_every_setting_that_is_a_path() -> None:
    tagging = load_config(TagConfig, "pictures: {roots: [~/a, s3://b]}", ["--queries=~/q.yaml"])
    assert (tagging.pictures.roots, tagging.queries) == (("/home/ada/a", "s3://b"), "/home/ada/q.yaml")
    assert load_config(TagConfig, "", ["--pictures.roots=~/a"]).pictures.roots == ("/home/ada/a",)
    assert load_config(ActorsConfig, "", ["--queries", "~/q.yaml"]).queries == "/home/ada/q.yaml"
    keys = ("model.encoder", "model.backbone_weights", "train.start_from", "queries")
    config = load_config(Config, "", [f"--{key}=~/x" for key in keys])
    found = (config.model.encoder, config.model.backbone_weights, config.train.start_from, config.queries)
    assert found == ("/home/ada/x",) * 4
