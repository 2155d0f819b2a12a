"""The archives of `shared/field/make.py`, made after other tools' bug reports: each gives what its README expects.

What each of them shows has its own quick tests, which make their inputs themselves; this is the whole way, once.
"""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow.dataset as ds
import pytest

from jobs import tag
from mnerqg.archive.run import tags_of
from mnerqg.errors import MnerqgError, StorageError

SHARED = Path(os.environ.get("MNERQG_SHARED", Path(__file__).resolve().parents[2].parent / "shared"))
MAKE = SHARED / "field" / "make.py"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.usefixtures("ray_cluster"),
    pytest.mark.skipif(not MAKE.is_file(), reason="shared/field is not here"),
]


@pytest.fixture(scope="module")
def archives(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("field")
    subprocess.run([sys.executable, str(MAKE), str(folder)], check=True, timeout=120)
    return folder


def rows_of(output: Path) -> dict[str, dict[str, Any]]:
    rows = ds.dataset(tags_of(str(output)), partitioning="hive").to_table().to_pylist()
    assert len({row["row_hash"] for row in rows}) == len(rows)
    return {row["post_id"]: row for row in rows}


def tagged(model: Path, archive: Path | str, output: Path, *settings: str) -> dict[str, dict[str, Any]]:
    arguments = ["--model", str(model), "--input", str(archive), "--output", str(output), *settings]
    tag.main([*arguments, "--dry-run"])
    tag.main(arguments)
    return rows_of(output)


def test_base64(tiny_model: Path, archives: Path, tmp_path: Path) -> None:
    rows = tagged(tiny_model, archives / "base64", tmp_path / "tags", "--max_failed", "0.2")
    found = {
        name: (row["image_status"], row["image_width"], row["image_height"]) for name, row in rows.items()
    }
    whole = dict.fromkeys(("plain", "wrapped", "url-safe", "unpadded", "data-uri"), ("ok", 320, 240))
    assert found == {**whole, "not-base64": ("unreadable", None, None)}
    assert "base64" in rows["not-base64"]["error"]


def test_what_is_no_picture_counts(tiny_model: Path, archives: Path, tmp_path: Path) -> None:
    with pytest.raises(MnerqgError, match="1 of 6 pictures failed"):
        tagged(tiny_model, archives / "base64", tmp_path / "tags", "--max_failed", "0.1")


def test_unused_drift(tiny_model: Path, archives: Path, tmp_path: Path) -> None:
    assert sorted(tagged(tiny_model, archives / "unused-drift", tmp_path / "tags")) == ["a", "b", "c"]


def test_string_kinds(tiny_model: Path, archives: Path, tmp_path: Path) -> None:
    passed = "--columns.pass_through=[lang]"
    rows = tagged(tiny_model, archives / "string-kinds", tmp_path / "tags", passed)
    assert {name: row["lang"] for name, row in rows.items()} == {"a": "en", "b": "en", "c": "en"}


def test_null_column(tiny_model: Path, archives: Path, tmp_path: Path) -> None:
    settings = ("--columns.pass_through=[lang]", "--max_failed", "1")
    rows = tagged(tiny_model, archives / "null-column", tmp_path / "tags", *settings)
    assert {name: (row["lang"], row["image_status"]) for name, row in rows.items()} == {
        "hour-01": ("en", "missing"),
        "hour-02": (None, "none"),
    }


@pytest.mark.parametrize("partitioned", [False, True])
def test_hive(tiny_model: Path, archives: Path, tmp_path: Path, partitioned: bool) -> None:
    settings = ["--columns.pass_through=[lang]"]
    if partitioned:
        settings.append("--columns.partition_by=[lang]")
    rows = tagged(tiny_model, archives / "hive", tmp_path / "tags", *settings)
    assert {name: row["lang"] for name, row in rows.items()} == {"en": "en", "de": "de"}
    assert (tmp_path / "tags" / "tags" / "lang=de").is_dir() is partitioned


def test_leftovers(tiny_model: Path, archives: Path, tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=r"b\.jsonl.* a FIFO"):
        tagged(tiny_model, archives / "leftovers", tmp_path / "refused")
    assert list(tagged(tiny_model, f"{archives}/leftovers/*.parquet", tmp_path / "tags")) == ["a"]


def test_pictures(tiny_model: Path, archives: Path, tmp_path: Path) -> None:
    rows = tagged(tiny_model, archives / "pictures", tmp_path / "tags", "--max_failed", "0.2")
    drawing = rows.pop("drawing.svg")
    assert drawing["image_status"] == "unreadable"
    assert "SVG" in drawing["error"]
    assert len(rows) == 7
    for name, row in rows.items():
        size = (240, 320) if name == "upright-by-exif.jpg" else (320, 240)
        assert (row["image_status"], row["image_width"], row["image_height"]) == ("ok", *size), name


def test_reasons(
    tiny_model: Path, archives: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = tagged(tiny_model, archives / "day-2026", tmp_path / "tags", "--max_failed", "1")
    assert rows
    printed = capsys.readouterr().out
    for folded in ("sN only", "day-N", "part-N", "bucket-N"):
        assert folded not in printed


def test_glued(tiny_model: Path, archives: Path, tmp_path: Path) -> None:
    """That each name can be an answer, exactly, is tested in tests/inputs/test_borders.py."""
    rows = tagged(tiny_model, archives / "glued", tmp_path / "tags")
    statuses = [rows[str(number)]["text_status"] for number in range(7)]
    assert statuses == ["ok"] * 6 + ["truncated"]
    assert 0 < rows["6"]["text_read"] < 1000
