"""`python -m mnerqg`, in the process of the tests."""

import base64
import io
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from mnerqg.__main__ import main
from mnerqg.archive.jsonlines import MAX_LINE_BYTES
from mnerqg.errors import MnerqgError
from tests.archives import encoded

TEXT = "😀 Ada Lovelace in Lisbon"


@pytest.fixture
def picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "picture.jpg"
    path.write_bytes(encoded())
    return path


def feed(monkeypatch: pytest.MonkeyPatch, *lines: bytes) -> None:
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"\n".join(lines))))


def test_one_post(tiny_model: Path, picture: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main([TEXT, "--image", str(picture), "--model", str(tiny_model), "--save", "out.png"])
    printed = capsys.readouterr()
    assert printed.out.startswith(f"{TEXT}\n")
    assert "\x1b" not in printed.out
    assert "box(es) drawn: out.png" in printed.err
    assert Image.open("out.png").size == (90, 60)


def test_one_post_as_json(tiny_model: Path, picture: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main([TEXT, "--image", str(picture), "--model", str(tiny_model), "--json"])
    (line,) = capsys.readouterr().out.splitlines()
    row = json.loads(line)
    assert (row["image_status"], row["image_width"], row["image_height"]) == ("ok", 90, 60)
    assert [TEXT[entity["start"] : entity["end"]] for entity in row["entities"]] == [
        entity["text"] for entity in row["entities"]
    ]
    assert {one["type"] for one in row["existence"]} == {"PER", "LOC", "ORG", "OTHER"}


def test_lines(
    tiny_model: Path, picture: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    posts: list[dict[str, Any]] = [
        {"post_id": 7, "text": TEXT},
        {"post_id": "a", "text": TEXT, "image_uri": "picture.jpg"},
        {"post_id": "b", "text": TEXT, "image": base64.b64encode(encoded(size=(30, 20))).decode()},
        {"post_id": "c", "text": TEXT, "image_uris": ["gone.jpg", "picture.jpg"]},
        {"post_id": "d", "text": TEXT, "image_uri": "/etc/passwd"},
        {"post_id": "e", "text": None, "image": base64.b64encode(b"no picture").decode()},
    ]
    bad = [b"", b"{", b"[1]", b"\xff", b'{"text": 1}', b'{"post_id": "x"}', b'{"text":"a","image":"%"}']
    feed(monkeypatch, *(json.dumps(post).encode() for post in posts), *bad, b"x" * (MAX_LINE_BYTES + 9), b"")
    main(["-", "--model", str(tiny_model)])
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    good, failed = rows[: len(posts)], rows[len(posts) :]
    assert [row["post_id"] for row in good] == ["7", "a", "b", "c", "d", "e"]
    assert [(row["image_status"], row["image_width"], row["text_status"]) for row in good] == [
        ("none", None, "ok"),
        ("ok", 90, "ok"),
        ("ok", 30, "ok"),
        ("ok", 90, "ok"),
        ("forbidden", None, "ok"),
        ("unreadable", None, "empty"),
    ]
    assert {region["image_index"] for region in good[3]["regions"]} <= {1}
    assert [row["error"] is None for row in good] == [True, True, True, False, False, False]
    for row, words in zip(
        failed,
        (
            "line 8 is not JSON",
            "line 9 is a list, not an object",
            "line 10 is not UTF-8 at byte 0",
            "line 11 has text that is a whole number, not text",
            "line 12 has neither text nor picture",
            "line 13 has image that is not base64",
            "line 14 has more than 16,777,216 bytes",
        ),
        strict=True,
    ):
        assert words in row["error"]
        assert row["entities"] == row["regions"] == []
        assert row.keys() == good[0].keys()


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["a", "--save", "out.png"], "give one with --image"),
        (["a", "--image", "gone.jpg"], "gone.jpg does not exist"),
        (["a", "--image", "picture.jpg", "--save", "out.txt"], "is no ending of a picture"),
        (["-", "--image", "picture.jpg"], "are for one post"),
    ],
)
def test_refusals(tiny_model: Path, picture: Path, argv: list[str], words: str) -> None:
    with pytest.raises(MnerqgError, match=words) as caught:
        main([*argv, "--model", str(tiny_model)])
    assert caught.value.exit_code == 2


def test_a_picture_that_is_none_is_said(
    tiny_model: Path, picture: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    picture.write_bytes(b"none")
    with pytest.raises(MnerqgError, match=r"picture\.jpg is unreadable; there is nothing to draw into"):
        main([TEXT, "--image", str(picture), "--model", str(tiny_model), "--save", "out.png"])
    assert "picture: unreadable, " in capsys.readouterr().out
    assert not Path("out.png").exists()


def test_neither_ray_nor_torch_for_the_help() -> None:
    code = (
        "import sys, runpy\nsys.argv = ['mnerqg', '--help']\n"
        "try: runpy.run_module('mnerqg', run_name='__main__')\n"
        "except SystemExit: assert not {'ray', 'torch'} & sys.modules.keys(), 'too much is imported'"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "python -m mnerqg" in done.stdout
