"""Each command of the benchmark from end to end; nothing is said of how long anything takes."""

import json
from io import BytesIO
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mnerqg.benchmark import tables
from mnerqg.distributed import measured_tagging
from mnerqg.io import storage
from tests.archives import encoded, write_archive, write_cheap_archive
from tests.commands import call
from tests.tiny_training import write_dataset, write_recipe

SPREAD = {"median", "min", "max"}


def measured(command: str, folder: Path, *arguments: str | Path, code: int = 0) -> dict[str, Any]:
    """The JSON of one round."""
    file = folder / "speed" / f"{command}.json"
    done = call("benchmark", command, *arguments, "--output", file, "--rounds", "1")
    assert done.returncode == code, done.stderr
    record: dict[str, Any] = json.loads(file.read_text())
    assert record["benchmark"] == command
    assert record["ok"] == (code == 0)
    assert {"cpus", "torch", "ray", "device", "load_before", "load_after"} <= set(record["machine"])
    assert [path.name for path in file.parent.iterdir()] == [file.name]  # what the job wrote is gone
    assert done.stdout.strip()
    return record


@pytest.mark.usefixtures("one_thread")
def test_host(tiny_model: Path, tmp_path: Path) -> None:
    record = measured("host", tmp_path, "--model", tiny_model, "--batch-posts", "4")
    assert record["host_us_per_post"] > 0
    assert record["rounds"]["host"][0]["posts"] == 16
    assert record["spans_a_post"] > 0


@pytest.mark.usefixtures("one_thread")
def test_train(tiny_model: Path, tmp_path: Path) -> None:
    write_dataset(tmp_path / "data", train=10, valid=1)
    recipe = write_recipe(tmp_path / "tiny.yaml", tiny_model, posts_per_step=4)
    record = measured("train", tmp_path, "--data", tmp_path / "data", "--config", recipe, "--steps", "2")
    assert set(record["posts_per_second"]) == {"pairwise", "bare", "joint"}
    assert set(record["posts_per_second"]["joint"]) == SPREAD
    assert record["ratio_to_pairwise"] > 0
    assert record["ratio_to_bare"] > 0
    assert record["posts_a_step"] == 4
    assert {done[0]["posts"] for done in record["rounds"].values()} == {8}


@pytest.mark.usefixtures("one_thread")
def test_train_with_a_model_directory(tiny_model: Path, tmp_path: Path) -> None:
    write_dataset(tmp_path / "data", train=2, valid=1)
    options = ("--model", tiny_model, "--steps", "1", "--train.posts_per_step", "2")
    assert measured("train", tmp_path, "--data", tmp_path / "data", *options)["posts_a_step"] == 2


def test_fetch_from_s3_over_http(s3_bucket: str, tmp_path: Path) -> None:
    uris = [f"{s3_bucket}/pictures/{number}.jpg" for number in range(6)]
    for uri in uris:
        storage.write_bytes(uri, encoded())
    sink = BytesIO()
    pq.write_table(pa.table({"post_id": list("abcdef"), "text": ["x"] * 6, "image_uri": uris}), sink)
    storage.write_bytes(f"{s3_bucket}/posts/a.parquet", sink.getvalue())
    options = ("--concurrency", "1,4", "--pictures", "5", "--pictures.roots", f"[{s3_bucket}/pictures]")
    record = measured("fetch", tmp_path, "--input", f"{s3_bucket}/posts", *options)
    assert set(record["pictures_per_second"]) == {"1", "4"}
    assert record["rounds"]["4"][0]["statuses"] == {"ok": 5}
    storage.delete_file(uris[0])
    record = measured("fetch", tmp_path, "--input", f"{s3_bucket}/posts", *options, code=1)
    assert record["failures"][0].startswith("1 pictures failed with 1 requests in flight: NoSuchKey")


def test_fetch_of_an_archive_without_uris(tmp_path: Path) -> None:
    write_cheap_archive(str(tmp_path / "posts"), 3, files=1)
    output = tmp_path / "f.json"
    done = call("benchmark", "fetch", "--input", tmp_path / "posts", "--output", output)
    assert done.returncode == 2
    assert "holds no pictures; give an archive with image_uri" in done.stderr
    assert not output.exists()


@pytest.mark.usefixtures("ray_cluster", "one_thread")
def test_tag(tiny_model: Path, tmp_path: Path) -> None:
    write_archive(str(tmp_path / "posts"), 24, files=2, seed=1, bad_share=0, side=(64, 48))
    options = ("--posts", "10", "--batch_posts", "4", "--actors", "1")
    record = measured("tag", tmp_path, "--model", tiny_model, "--input", tmp_path / "posts", *options)
    ways = {"pairwise", "bare", "tagger", "tagger_with_decoding", "job"}
    assert set(record["rounds"]) == ways
    assert set(record["posts_per_second"]) == ways | {"job_steady"}
    assert {name: done[0]["posts"] for name, done in record["rounds"].items()} == dict.fromkeys(ways, 10) | {
        "job": 24
    }
    assert all(set(figures) == SPREAD for figures in record["posts_per_second"].values())
    assert all(0 < figures["median"] <= 1 for figures in record["device_busy"].values())
    assert 0 < record["cpus_busy"]["median"] <= 1
    assert record["ratio_to_pairwise"] > 0
    assert record["ratio_to_bare"] > 0
    assert record["spilled_bytes"] == 0
    assert all(record["memory"][f"{kind}_mib"] > 10 for kind in ("driver", "actors", "tasks"))
    assert record["rounds"]["job"][0]["batches"] == 6  # the actor's warm-up is not among them


@pytest.mark.usefixtures("ray_cluster")
def test_scale_on_the_running_cluster(tiny_model: Path, tmp_path: Path) -> None:
    options = ("--here", "--nodes", "1", "--posts", "300", "--rows", "50", "--us-per-post", "1000")
    record = measured("scale", tmp_path, "--model", tiny_model, *options)
    (nodes,), (rows,) = record["nodes"], record["rows"]
    assert nodes["nodes"] == 1
    assert nodes["limit_rows_per_second"] == 1000
    assert 0 < nodes["efficiency"]["median"] < 1.5
    assert 0 < nodes["device_busy"]["median"] <= 1
    assert nodes["ratio_to_first"] == 1
    assert nodes["together_rows_per_second"]["median"] > 0
    header, row, *_ = tables.scale(record).splitlines()
    assert header.split()[4:] == ["all", "median", "min", "max", "to", "first", "efficiency", "busy"]
    assert len(row.split()) == 8
    assert rows["rows"] == 50
    assert set(rows["seconds"]) == SPREAD
    assert rows["memory"]["actors_mib"] > 10


@pytest.mark.usefixtures("ray_cluster")
def test_a_wrong_number_of_rows_fails(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(measured_tagging, "tag_archive", lambda *_: {"rows": 7})
    options = ("--here", "--nodes", "1", "--posts", "8", "--rows", "8")
    record = measured("scale", tmp_path, "--model", tiny_model, *options, code=1)
    assert "1: 7 rows came out for 8 posts" in record["failures"]


@pytest.mark.usefixtures("no_cluster")
@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("scale", "--model", "m", "--nodes", "0"), "--nodes is '0'"),
        (("scale", "--model", "m", "--us-per-post", "0"), "--us-per-post is 0"),
        (("tag", "--model", "m", "--input", "a", "--rounds", "0"), "--rounds is 0"),
        (("tag", "--model", "m", "--input", "a", "--batch_post", "1"), "unknown key batch_post"),
        (("host", "--model", "m", "--batch_posts", "1"), "unexpected argument '--batch_posts'"),
        (("host", "--model", "nowhere"), "nowhere"),
        (("tag", "--model", "nowhere", "--input", "a"), "nowhere"),
        (("scale", "--model", "nowhere", "--here"), "nowhere"),
        (("train", "--config", "nowhere", "--data", "d"), "--config nowhere does not exist"),
        (("train", "--model", "nowhere", "--data", "d"), "nowhere"),
        (("fetch", "--input", "nowhere", "--concurrency", "x"), "--concurrency is 'x'"),
    ],
)
def test_bad_settings(options: tuple[str, ...], said: str, tmp_path: Path) -> None:
    done = call("benchmark", *options, "--output", tmp_path / "f.json")
    assert (done.returncode, done.stdout) == (2, ""), done.stderr
    assert said in done.stderr
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "f.json").exists()
