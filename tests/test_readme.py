"""What README and docs show runs as it is printed: every command, query and snippet.

Commands of jobs are called with their arguments up to the point where the work would begin (`WORK`); what is short is
done in full.
"""

import importlib
import io
import json
import re
import shlex
import shutil
import tomllib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from mnerqg.__main__ import main as tag_one
from mnerqg.datasets.prepared import read_posts
from mnerqg.errors import MnerqgError
from mnerqg.queries import load_queries
from mnerqg.schema import tags_schema
from tests.archives import encoded
from tests.commands import call

ROOT = Path(__file__).resolve().parents[1]
PAGES = {
    path.name: path.read_text(encoding="utf-8")
    for path in (ROOT / "README.md", *(ROOT / "docs").glob("*.md"))
}

# Where the work of a job begins: what is called there is all that a command can do wrong before it.
WORK = {
    "benchmark": "mnerqg.benchmark.rounds.Report",
    "demo": "mnerqg.demo.world.write_world",
    "evaluate": "mnerqg.distributed.evaluation.evaluate",
    "experiments": "mnerqg.distributed.experiments.plan_table",
    "label": "mnerqg.distributed.labelling.label",
    "report": "mnerqg.report.report.write_report",
    "tag": "mnerqg.distributed.tagging_plan.plan_tagging",
    "train": "mnerqg.distributed.training.train",
}
# Of the other programs: what has to be there for a command of it to work.
OTHERS = {"export", "ray", "tensorboard", ".", "cd"}


class ReachedError(Exception):
    """The command was right."""


def blocks(language: str, word: str = "", page: str | None = None) -> list[str]:
    """The code blocks of a language with a word in them."""
    texts = PAGES.values() if page is None else [PAGES[page]]
    found = [block for text in texts for block in re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)]
    return [block for block in found if word in block]


def commands() -> Iterator[list[str]]:
    """The words of every command of the shell blocks, with variables put in."""
    for block in blocks("sh"):
        variables: dict[str, str] = {}
        for line in block.replace("\\\n", " ").splitlines():
            for command in re.split(r" && ", line):
                for name, value in variables.items():
                    command = command.replace(f"${name}", value)
                words = shlex.split(command.replace("00{1,2,3,4,5}", "001"), comments=True)
                if len(words) == 1 and "=" in words[0]:
                    name, _, value = words[0].partition("=")
                    variables[name] = value
                elif words:
                    yield words


COMMANDS = sorted({shlex.join(words): words for words in commands()}.items())


@pytest.fixture
def nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that looks like the checkout to a command, and no Ray."""
    for name in ("jobs", "constraints.txt"):
        (tmp_path / name).symlink_to(ROOT / name)
    monkeypatch.chdir(tmp_path)
    for name in ("connect", "hush"):
        replace_all(monkeypatch, f"mnerqg.distributed.session.{name}", lambda **_: None)
    return tmp_path


def replace_all(monkeypatch: pytest.MonkeyPatch, place: str, value: Any) -> None:
    """Put `value` in the place of a function, where it is made and in the jobs that have imported it."""
    module, _, name = place.rpartition(".")
    for job in WORK:
        monkeypatch.setattr(importlib.import_module(f"jobs.{job}"), name, value, raising=False)
    monkeypatch.setattr(importlib.import_module(module), name, value, raising=False)


def reach(*_: Any, **__: Any) -> None:
    raise ReachedError


@pytest.mark.parametrize("words", [words for _, words in COMMANDS], ids=[text for text, _ in COMMANDS])
def test_commands(words: list[str], nowhere: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if words[:2] == ["ray", "job"]:
        words = words[words.index("--") + 1 :]
    program, *arguments = words
    if program == "python" and arguments[0].startswith("jobs/"):
        check_job(Path(arguments[0]).stem, arguments[1:], monkeypatch)
    elif program == "python" and arguments[:2] == ["-m", "pip"]:
        check_pip(arguments)
    elif program == "python" and arguments[:2] == ["-m", "mnerqg"]:
        check_one_post(arguments[2:], monkeypatch)
    elif program == "make":
        assert re.search(rf"^{arguments[0]}:", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    elif program == "python3.11":
        assert arguments == ["-m", "venv", ".venv"]
    else:
        assert program in OTHERS, f"README or docs print {program}; say here how it is checked"


def check_job(job: str, arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    main = importlib.import_module(f"jobs.{job}").main
    if job == "prepare":
        with pytest.raises(MnerqgError, match=r"^(data|demo)/.*: no such directory"):
            main(arguments)
        return
    if job == "exchange":
        with pytest.raises(MnerqgError, match=r"is no tagging run|corrected.json does not exist"):
            main(arguments)
        return
    replace_all(monkeypatch, WORK[job], reach)
    with pytest.raises(ReachedError):
        main(arguments)


def check_pip(arguments: list[str]) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    pins = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    options = {"-m", "pip", "install", "--constraint", "constraints.txt", "--no-deps"}
    for wanted in (word for word in arguments if word not in options):
        extra = re.fullmatch(r"\.\[(\w+)\]", wanted)
        assert extra[1] in project["optional-dependencies"] if extra else wanted in pins


def check_one_post(arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    Path("picture.jpg").write_bytes(encoded())
    monkeypatch.setattr("mnerqg.tagger.Tagger.load", reach)
    arguments = arguments[: arguments.index("<")] if "<" in arguments else arguments
    with pytest.raises(ReachedError):
        tag_one(arguments)


def test_the_commands_are_seen() -> None:
    programs = Counter(words[0] for _, words in COMMANDS)
    assert programs["python"] > 20
    assert programs["ray"] == 4


def proofs() -> dict[str, tuple[list[Path], list[str]]]:
    """Each `pytest` that a page names: its files and folders, and the names that it asks for."""
    pages = [*PAGES.values(), (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")]
    found = {}
    for command in {" ".join(one.split()) for page in pages for one in re.findall(r"`pytest ([^`]+)`", page)}:
        words = shlex.split(command)
        names = words[words.index("-k") + 1].split(" or ") if "-k" in words else []
        found[command] = [ROOT / word for word in words if word.startswith("tests")], names
    return found


PROOFS = dict(sorted(proofs().items()))


@pytest.mark.parametrize(("paths", "names"), PROOFS.values(), ids=PROOFS)
def test_what_is_said_to_be_tested_is(paths: list[Path], names: list[str]) -> None:
    assert paths
    files = [file for path in paths for file in ([path] if path.suffix else path.rglob("test_*.py"))]
    texts = [file.read_text(encoding="utf-8") for file in files]
    for name in names:
        assert any(name in text for text in texts), f"none of {', '.join(map(str, paths))} has {name}"


def test_links_and_pictures_lead_somewhere() -> None:
    for name, text in PAGES.items():
        folder = ROOT if name == "README.md" else ROOT / "docs"
        for target in re.findall(r"\]\(([^)#\s]*)(?:#[\w-]+)?\)", text):
            if target and "://" not in target:
                assert (folder / target).exists(), f"{name}: {target}"
        for page, anchor in re.findall(r"\]\(([^)#\s]*)#([\w-]+)\)", text):
            there = text if not page else PAGES[Path(page).name]
            heads = [
                re.sub(r"[^\w -]", "", head).strip().lower()
                for head in re.findall(r"^#+ (.*)$", there, re.MULTILINE)
            ]
            assert anchor in [head.replace(" ", "-") for head in heads], f"{name}: #{anchor}"


def test_readme_can_be_read_in_ten_minutes() -> None:
    assert len(PAGES["README.md"].splitlines()) <= 200


def test_console() -> None:
    (block,) = blocks("console")
    command, *printed = block.splitlines()
    arguments = shlex.split(command.removeprefix("$ python jobs/train.py "))
    done = call("train", *arguments)
    assert done.returncode == 2
    for line in printed:
        assert done.stderr.startswith(line.removesuffix(", ..."))


@pytest.mark.usefixtures("ray_cluster")
def test_your_own_posts(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The posts of README, in bulk and line by line."""
    (posts,) = blocks("json")
    (tmp_path / "posts").mkdir()
    (tmp_path / "posts" / "posts.jsonl").write_text(posts, encoding="utf-8")
    for number in (1, 2):
        (tmp_path / "posts" / f"{number}.jpg").write_bytes(encoded())
    monkeypatch.chdir(tmp_path)
    (words,) = (words for _, words in COMMANDS if "posts/posts.jsonl" in words and "jobs/tag.py" in words)
    command = ["demo_output/run/best".join(word.split("$MODEL")) for word in words[2:]]
    shutil.copytree(tiny_model, tmp_path / "demo_output" / "run" / "best")
    importlib.import_module("jobs.tag").main(command)
    rows = pq.read_table(
        tmp_path / "tagged" / "tags", columns=["post_id", "image_status", "error"]
    ).to_pylist()
    assert sorted((row["post_id"], row["image_status"], row["error"]) for row in rows) == [
        ("1", "ok", None),
        ("2", "ok", None),
        ("3", "none", None),
    ]
    import duckdb

    (query,) = blocks("sql", page="README.md")
    duckdb.sql(query).fetchall()
    capsys.readouterr()
    monkeypatch.chdir(tmp_path / "posts")
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(posts.encode())))
    tag_one(["--model", "../demo_output/run/best", "-"])
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [(line["post_id"], line["image_status"]) for line in lines] == [
        ("1", "ok"),
        ("2", "ok"),
        ("3", "none"),
    ]


def test_queries(tmp_path: Path) -> None:
    (text,) = blocks("yaml")
    (tmp_path / "queries.yaml").write_text(text, encoding="utf-8")
    assert [query.type for query in load_queries(str(tmp_path / "queries.yaml"))] == [
        one["type"] for one in yaml.safe_load(text)
    ]


def tag_rows() -> list[dict[str, Any]]:
    types = [["PER", "PER"], ["LOC"], [], ["PER", "ORG"], []]
    errors = [None, "503 after 4 attempts", "503 after 6 attempts", "NoSuchKey", None]
    region = {"type": "PER", "score": 0.5, "image_index": 0}
    return [
        {
            "post_id": str(number),
            "entities": [{"text": "x", "start": 0, "end": 1, "type": kind} for kind in types[number]],
            "regions": [region] * (number % 3),
            "image_status": "missing" if errors[number] else "ok",
            "error": errors[number],
            "row_hash": number,
        }
        for number in range(5)
    ]


@pytest.fixture
def tags(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "tags" / "2026-11-22"
    (folder / "tags").mkdir(parents=True)
    table = pa.Table.from_pylist(tag_rows(), schema=tags_schema())
    pq.write_table(table.slice(0, 2), folder / "tags" / "a-0.parquet")
    pq.write_table(table.slice(2), folder / "tags" / "b-0.parquet")
    for name in ("_run.json", "_manifest.json", "_SUCCESS"):
        (folder / name).write_text("{}")
    monkeypatch.chdir(tmp_path)


@pytest.mark.usefixtures("tags")
def test_duckdb() -> None:
    import duckdb

    (sql,) = blocks("sql", "tags/", page="formats.md")
    queries = [query for query in sql.split(";") if query.strip()]
    posts, mean, failures = (duckdb.sql(query).fetchall() for query in queries)
    assert posts[0] == ("PER", 2)
    assert sorted(posts) == [("LOC", 1), ("ORG", 1), ("PER", 2)]
    assert mean == [(pytest.approx(0.8),)]
    assert failures == [("missing", "N after N attempts", 2), ("missing", "NoSuchKey", 1)]


def run_snippet(word: str) -> None:
    (code,) = blocks("python", word)
    exec(compile(code, "a snippet", "exec"), {})


@pytest.mark.usefixtures("tags")
def test_pandas(capsys: pytest.CaptureFixture[str]) -> None:
    run_snippet("import pandas")
    printed = capsys.readouterr().out
    counts = Counter(dict(re.findall(r"^(PER|LOC|ORG) +(\d+)$", printed, re.MULTILINE)))
    assert counts == {"PER": "2", "LOC": "1", "ORG": "1"}
    assert "0.8\n" in printed
    assert re.search(r"missing +503 after 4 attempts +1", printed)


@pytest.mark.usefixtures("tags")
def test_polars(capsys: pytest.CaptureFixture[str]) -> None:
    run_snippet("import polars")
    printed = capsys.readouterr().out
    assert re.findall(r"(LOC|ORG|PER) +┆ (\d)", printed) == [("LOC", "1"), ("ORG", "1"), ("PER", "2")]
    assert printed.endswith("0.8\n")


@pytest.mark.usefixtures("tags")
def test_pyarrow(capsys: pytest.CaptureFixture[str]) -> None:
    run_snippet("import pyarrow.dataset")
    assert capsys.readouterr().out == "5\n"


def test_every_section_is_there_once() -> None:
    """docs/formats.md is merged by union, which may double its sections."""
    heads = re.findall(r"^#+ .*$", PAGES["formats.md"], re.MULTILINE)
    assert len(heads) == len(set(heads)) > 10


def test_training_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "picture.jpg").write_bytes(encoded())
    monkeypatch.chdir(tmp_path)
    run_snippet("write_split")
    (post,) = read_posts("prepared/mine", "train")
    assert [post.text[span.start : span.end] for span in post.entities if post.text] == [
        "Kate Bush",
        "Hammersmith",
    ]


def test_python_api(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(tiny_model, tmp_path / "runs" / "twitter2015" / "best")
    (tmp_path / "picture.jpg").write_bytes(encoded())
    monkeypatch.chdir(tmp_path)
    run_snippet("Tagger.load(")
    for line in capsys.readouterr().out.splitlines():
        assert re.match(r".+ \d+ \d+ (PER|LOC|ORG|OTHER) 0\.\d+ (\d+|None)$", line)
