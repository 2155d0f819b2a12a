"""What the README shows runs as it is printed."""

import re
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mnerqg.schema import tags_schema
from tests.archives import encoded

ROOT = Path(__file__).resolve().parents[1]


def blocks(language: str, word: str, page: str = "README.md") -> list[str]:
    """The code blocks of a language with a word in them."""
    text = (ROOT / page).read_text(encoding="utf-8")
    found = re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)
    return [block for block in found if word in block]


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

    (sql,) = blocks("sql", "tags/")
    queries = [query for query in sql.split(";") if query.strip()]
    posts, mean, failures = (duckdb.sql(query).fetchall() for query in queries)
    assert posts[0] == ("PER", 2)
    assert sorted(posts) == [("LOC", 1), ("ORG", 1), ("PER", 2)]
    assert mean == [(pytest.approx(0.8),)]
    assert failures == [("missing", "N after N attempts", 2), ("missing", "NoSuchKey", 1)]


@pytest.mark.usefixtures("tags")
def test_pandas(capsys: pytest.CaptureFixture[str]) -> None:
    (code,) = blocks("python", "import pandas")
    exec(compile(code, "README.md", "exec"), {})
    printed = capsys.readouterr().out
    counts = Counter(dict(re.findall(r"^(PER|LOC|ORG) +(\d+)$", printed, re.MULTILINE)))
    assert counts == {"PER": "2", "LOC": "1", "ORG": "1"}
    assert "0.8\n" in printed
    assert re.search(r"missing +503 after 4 attempts +1", printed)


@pytest.mark.usefixtures("tags")
def test_every_reader_takes_the_folder(capsys: pytest.CaptureFixture[str]) -> None:
    import duckdb

    (sql,) = blocks("sql", "count(*)", "docs/formats.md")
    assert duckdb.sql(sql).fetchall() == [(5,)]
    (code,) = blocks("python", "import polars", "docs/formats.md")
    exec(compile(code, "docs/formats.md", "exec"), {})
    assert capsys.readouterr().out.split() == ["5"] * 3


def test_python_api(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (code,) = blocks("python", "Tagger.load")
    shutil.copytree(tiny_model, tmp_path / "runs" / "twitter2015" / "best")
    (tmp_path / "picture.jpg").write_bytes(encoded())
    monkeypatch.chdir(tmp_path)
    exec(compile(code, "README.md", "exec"), {})
    for line in capsys.readouterr().out.splitlines():
        assert re.match(r".+ \d+ \d+ (PER|LOC|ORG|OTHER) 0\.\d+ (\d+|None)$", line)
