import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jobs.tag import main
from mnerqg import cli
from mnerqg.errors import MnerqgError
from mnerqg.schema import tags_schema

POSTS: dict[str, Any] = {"post_id": ["1", "2", "3"], "text": [" ", None, ""], "lang": ["en", "pt", "it"]}


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    folder = tmp_path / "archive"
    folder.mkdir()
    pq.write_table(pa.table(POSTS), folder / "posts.parquet")
    return folder


def arguments(model: Path, archive: Path, output: Path, *rest: str) -> list[str]:
    return ["--model", str(model), "--input", str(archive), "--output", str(output), *rest]


@pytest.mark.usefixtures("ray_cluster")
def test_archive_without_pictures_and_words(
    tiny_model: Path,
    archive: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Every list is empty and every picture null: the files have the full schema all the same."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tag.yaml").write_text(
        "columns: {pass_through: [lang]}\nmax_rows_per_file: 2\nmin_rows_per_file: 1\n"
    )
    main(arguments(tiny_model, Path("archive"), Path("tags"), "--config", "tag.yaml", "--batch_posts", "2"))
    files = sorted((tmp_path / "tags" / "tags").glob("*.parquet"))
    rows: list[dict[str, Any]] = []
    for file in files:
        table = pq.read_table(file)
        assert table.schema.remove_metadata() == tags_schema([pa.field("lang", pa.string())])
        rows += table.to_pylist()
    assert sorted((row["post_id"], row["lang"]) for row in rows) == [("1", "en"), ("2", "pt"), ("3", "it")]
    assert {(row["image_status"], row["text_status"], row["error"]) for row in rows} == {
        ("none", "empty", None)
    }
    printed = capsys.readouterr().out
    for line in ("tagging 3 posts of", "text empty", "picture none", f"{tmp_path}/tags/tags/\n"):
        assert line in printed
    manifest = json.loads((tmp_path / "tags" / "_manifest.json").read_text())
    assert manifest["rows"] == 3
    assert manifest["text_status"] == {"ok": 0, "empty": 3, "truncated": 0}
    assert manifest["entities"] == manifest["regions"] == {}
    assert len(manifest["files"]) == len(files)
    before = sorted((file, file.stat().st_mtime_ns) for file in (tmp_path / "tags").rglob("*"))
    again = arguments(tiny_model, Path("archive"), Path("tags"), "--config", "tag.yaml")
    main(again)
    assert f"already done: run {manifest['run_id']} finished at" in capsys.readouterr().out
    with pytest.raises(MnerqgError, match="holds a finished tagging run, which --restart never touches"):
        main([*again, "--restart"])
    with pytest.raises(MnerqgError, match=r"\(columns\.pass_through: \[\"lang\"\] there, \[\] now\)"):
        main(arguments(tiny_model, Path("archive"), Path("tags")))
    assert sorted((file, file.stat().st_mtime_ns) for file in (tmp_path / "tags").rglob("*")) == before


@pytest.mark.usefixtures("ray_cluster")
def test_dry_run(tiny_model: Path, archive: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = arguments(tiny_model, archive, tmp_path / "tags", "--actors", "[1, 2]")
    main([*command, "--dry-run"])
    printed = capsys.readouterr().out
    size = (archive / "posts.parquet").stat().st_size
    for label, value in (
        ("posts", "3"),
        ("files", r"1 \(parquet\)"),
        ("bytes", f"{size:,}"),
        ("pictures", "none"),
        ("model", r"1 to 2 actor\(s\) with 1 CPU and 0 GPU"),
        ("cluster", "4 CPUs, 0 GPUs, object store of 191 MiB"),
        ("output", r".*/tags \(a new run\)"),
    ):
        assert re.search(rf"^{label} +{value}$", printed, re.MULTILINE), (label, printed)
    assert not (tmp_path / "tags").exists()
    (tmp_path / "tags").mkdir()
    state = {"run_id": "r1", "asked": {"model_id": "m"}}
    (tmp_path / "tags" / "_run.json").write_text(json.dumps(state))
    check_refusal([*command, "--dry-run"], r"holds another tagging run \(model_id: m there")
    main([*command, "--dry-run", "--restart"])
    assert re.search(r"^output +.*/tags \(starts over run r1\)$", capsys.readouterr().out, re.MULTILINE)
    assert json.loads((tmp_path / "tags" / "_run.json").read_text()) == state
    images = [{"bytes": None, "path": "a.jpg"}] * 3
    pq.write_table(table(image=images), archive / "posts.parquet")
    main([*command, "--dry-run", "--restart"])
    words = rf"^pictures +in the archive, or at a path below {archive}$"
    assert re.search(words, capsys.readouterr().out, re.MULTILINE)


def damage(model: Path, change: Callable[[Path], object]) -> Path:
    copy = model.parent / "damaged"
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(model, copy)
    change(copy)
    return copy


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda copy: (copy / "queries.yaml").unlink(), "queries.yaml is missing"),
        (lambda copy: (copy / "model.json").unlink(), "model.json is missing"),
        (
            lambda copy: (copy / "model.json").write_text('{"format_version": 99, "model_id": ""}'),
            "version 99",
        ),
        (lambda copy: (copy / "model.safetensors").write_bytes(b"x"), "is damaged"),
        (shutil.rmtree, "does not exist"),
    ],
)
def test_bad_model(
    tiny_model: Path, archive: Path, tmp_path: Path, change: Callable[[Path], object], words: str
) -> None:
    check_refusal(arguments(damage(tiny_model, change), archive, tmp_path / "tags"), words)
    assert not (tmp_path / "tags").exists()


def table(**columns: Any) -> pa.Table:
    return pa.table({**POSTS, **columns})


@pytest.mark.parametrize(
    ("posts", "rest", "words"),
    [
        (
            table(),
            ["--columns.text", "body"],
            r"no column body; it has: post_id, text, lang; .*--columns.text",
        ),
        (table().drop_columns(["post_id"]), [], "no column post_id; it has: text, lang"),
        (table(text=[1, 2, 3]), [], "column text holds int64, not text"),
        (table(post_id=[1.0, 2.0, 3.0]), [], "column post_id holds double, not text or integers"),
        (
            table(image=[1, 2, 3]),
            [],
            "column image holds int64, not binary, base64 or structs of bytes and path",
        ),
        (table(image_uri=[1, 2, 3]), [], "column image_uri holds int64, not text"),
        (table(), ["--columns.image_uri", "url"], "no column url"),
        (table(), ["--columns.image", "text"], "image names text, which holds ids or texts"),
        (table(), ["--columns.pass_through", "[when]"], "no column when; it has: post_id, text, lang"),
        (
            table(error=["", "", ""]),
            ["--columns.pass_through", "[error]"],
            "error, which is a column of the tags",
        ),
        (table(), ["--columns.pass_through", "[lang, lang]"], "names lang twice"),
        (table().slice(0, 0), [], "holds no posts"),
        (table(), ["--actors", "0"], "actors"),
        (table(), ["--actors", "[3, 2]"], "first of .min, max. must not be the larger"),
        (
            table(),
            ["--no_such_key", "1"],
            "unknown key no_such_key; allowed here: queries, columns, pictures",
        ),
        (table(), ["--pictures.roots", "[gs://b]"], "'gs' is not supported"),
        (table(), ["--pictures.schemes", "[ftp]"], "pictures.schemes"),
        (table(), ["--pictures.formats", "[jpeg, svg]"], "pictures.formats"),
        (table(), ["--config", "no.yaml"], "no.yaml does not exist"),
    ],
)
def test_bad_archive_or_setting(
    tiny_model: Path, tmp_path: Path, posts: pa.Table, rest: list[str], words: str
) -> None:
    pq.write_table(posts, tmp_path / "posts.parquet")
    check_refusal(arguments(tiny_model, tmp_path / "posts.parquet", tmp_path / "tags", *rest), words)
    assert not (tmp_path / "tags").exists()


def test_bad_files(tiny_model: Path, archive: Path, tmp_path: Path) -> None:
    tags = tmp_path / "tags"
    check_refusal(arguments(tiny_model, tmp_path / "nowhere", tags), "nowhere does not exist")
    (tmp_path / "empty").mkdir()
    check_refusal(arguments(tiny_model, tmp_path / "empty", tags), "holds no ")
    (archive / "z.parquet").write_bytes(b"post_id,text\n")
    check_refusal(arguments(tiny_model, archive, tags), r"z\.parquet is not readable as Parquet")
    pq.write_table(table(lang=[1, 2, 3]), archive / "z.parquet")
    check_refusal(
        arguments(tiny_model, archive, tags, "--columns.pass_through", "[lang]"),
        r"z\.parquet: the column lang holds int64, but string in .*posts\.parquet, and no type holds both",
    )
    pq.write_table(table().drop_columns(["text"]), archive / "z.parquet")
    check_refusal(arguments(tiny_model, archive, tags), r"z\.parquet has no column text")
    assert not tags.exists()


def test_a_training_run_is_no_model(tiny_model: Path, archive: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_model, tmp_path / "run" / "best")
    words = rf"/run is a training run, and no model; give one of its models, such as {tmp_path}/run/best$"
    check_refusal(arguments(tmp_path / "run", archive, tmp_path / "tags"), words)


def test_several_inputs_and_one_name(
    tiny_model: Path, archive: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], ray_cluster: None
) -> None:
    shutil.copytree(archive, tmp_path / "more")
    main([*arguments(tiny_model, archive, tmp_path / "tags"), f"--input={tmp_path}/more/", "--dry-run",
          "--columns.pass_through", "lang"])  # fmt: skip
    printed = capsys.readouterr().out
    assert f"tagging 6 posts of {archive}, {tmp_path}/more with the model" in printed


def test_bad_output(tiny_model: Path, archive: Path, tmp_path: Path) -> None:
    check_refusal(arguments(tiny_model, archive, archive), "lies in the archive")
    check_refusal(arguments(tiny_model, archive, archive / "tags"), "lies in the archive")
    output = tmp_path / "tags"
    output.write_text("a file")
    check_refusal(arguments(tiny_model, archive, output), "tags: not a directory")
    output.unlink()
    output.mkdir()
    (output / "notes.txt").write_text("mine")
    check_refusal(
        arguments(tiny_model, archive, output),
        "holds files of no tagging run; choose an empty or new folder",
    )
    assert [path.name for path in output.iterdir()] == ["notes.txt"]
    (tmp_path / "file").write_text("")
    check_refusal(arguments(tiny_model, archive, tmp_path / "file" / "tags"), "file")


@pytest.mark.usefixtures("ray_cluster")
def test_cluster_too_small(tiny_model: Path, archive: Path, tmp_path: Path) -> None:
    rest = ("--actors", "40")
    check_refusal(arguments(tiny_model, archive, tmp_path / "tags", *rest), r"4 CPUs, but 40 actor\(s\)")


def check_refusal(argv: list[str], words: str) -> None:
    """The command ends with a single line and the exit code 2."""
    with pytest.raises(MnerqgError, match=words) as caught:
        main(argv)
    assert caught.value.exit_code == 2
    assert "\n" not in str(caught.value)


def test_one_line_and_exit_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = arguments(tmp_path / "no-model", tmp_path, tmp_path / "tags")
    monkeypatch.setattr("sys.argv", ["jobs/tag.py", *argv])
    with pytest.raises(SystemExit) as caught:
        cli.run(main)
    assert caught.value.code == 2
    assert capsys.readouterr().err.startswith(f"error: {tmp_path}/no-model does not exist")
