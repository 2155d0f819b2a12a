"""jobs/demo.py: what it draws and what it may not overwrite. The whole takes minutes; `make demo` is its test."""

from pathlib import Path

import pytest

from jobs import demo
from mnerqg.demo import ambiguous, world
from mnerqg.errors import ConfigError


def test_a_folder_of_somebody_elses_is_left_alone(tmp_path: Path) -> None:
    tags = tmp_path / "tags"
    tags.mkdir()
    (tags / "mine.txt").write_text("mine")
    for rest in ([], ["--world-only"]):  # for the next demo would take it for an earlier one's
        with pytest.raises(ConfigError, match="holds files of no earlier demo"):
            demo.main(["--output", str(tmp_path), *rest])
    assert [path.name for path in tmp_path.rglob("*")] == ["tags", "mine.txt"]


def test_the_world_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(world, "SPLIT_POSTS", {"train": 2, "valid": 1, "test": 1})
    monkeypatch.setattr(world, "ARCHIVE_POSTS", 14)
    monkeypatch.setattr(ambiguous, "SPLIT_POSTS", {"train": 3, "valid": 1, "test": 1})
    demo.main(["--output", str(tmp_path), "--world-only", "--ambiguous", "--phrases", "8", "--seed", "3"])
    assert f"posts in {tmp_path / 'posts'}; " in capsys.readouterr().out
    assert [path.name for path in tmp_path.iterdir()] == ["posts"]
    assert '"seed": 3' in (tmp_path / "posts" / "demo.json").read_text()
    assert len((tmp_path / "posts" / "phrases" / "train.txt").read_text().split()) == 7
    assert (tmp_path / "posts" / "ambiguous" / "train.txt").read_text().count("IMGID") == 3
