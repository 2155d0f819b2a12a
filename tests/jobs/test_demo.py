"""jobs/demo.py: what it may not overwrite. The demo itself takes minutes; `make demo` is its test."""

from pathlib import Path

import pytest

from jobs import demo
from mnerqg.errors import ConfigError


def test_a_folder_of_somebody_elses_is_left_alone(tmp_path: Path) -> None:
    tags = tmp_path / "tags"
    tags.mkdir()
    (tags / "mine.txt").write_text("mine")
    with pytest.raises(ConfigError, match="holds files of no earlier demo"):
        demo.main(["--output", str(tmp_path)])
    assert (tags / "mine.txt").read_text() == "mine"
