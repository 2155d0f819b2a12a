"""jobs/report.py: from tags on a disk and in S3 to the page; unfinished, moved and missing parts."""

import gzip
import json
import re
import shutil
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mnerqg.config_jobs import PicturesConfig
from mnerqg.io import storage
from mnerqg.schema import tags_schema
from tests.archives import MAX_BYTES, write_archive
from tests.commands import call
from tests.noisy_tags import Night, write_night, write_training


@pytest.fixture(scope="module")
def night(tmp_path_factory: pytest.TempPathFactory) -> Night:
    return write_night(str(tmp_path_factory.mktemp("night")), 70)


def page_data(page: str) -> dict[str, Any]:
    (data,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)
    loaded: dict[str, Any] = json.loads(data)
    return loaded


def report(*arguments: str | Path, output: Path) -> tuple[str, str, dict[str, Any]]:
    """What was printed, the page and its data."""
    done = call("report", *arguments, "--output", output)
    assert (done.returncode, done.stderr) == (0, "")
    page = (output / "report.html").read_text(encoding="utf-8")
    assert f"report: {output}/report.html (" in done.stdout
    return done.stdout, page, page_data(page)


def refused(words: str, *arguments: str | Path) -> None:
    done = call("report", *arguments)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert re.search(words, done.stderr), done.stderr


def test_tags_gold_and_training(night: Night, tmp_path: Path) -> None:
    training = write_training(tmp_path / "run")
    printed, page, data = report(
        "--tags", night.tags, "--data", night.data, "--model", training, output=tmp_path / "out"
    )
    assert printed.startswith("70 of 70 posts in the gallery, seed 0\nreport: ")
    assert "The gallery shows 70 of 70, seed 0" in page
    assert "Against gold" in page
    posts = {post["id"]: post for post in data["posts"]}
    assert len(posts) == 70
    shown = [picture for post in posts.values() for picture in post["pictures"] if picture["uri"]]
    assert len(shown) > 60
    assert posts["night-00007"]["pictures"][0]["why"] == "the picture was not there when the post was tagged"
    assert posts["night-00013"]["pictures"] == []
    assert all(post["gold"]["verdicts"] is not None for post in posts.values())
    assert ["lang", "en"] in posts["night-00000"]["more"]
    assert data["types"] == ["PER", "LOC", "ORG", "OTHER"]


def test_a_sample_says_so_and_is_the_same_again(night: Night, tmp_path: Path) -> None:
    printed, page, data = report("--tags", night.tags, "--sample", "20", "--seed", "4", output=tmp_path / "a")
    assert printed.startswith("20 of 70 posts in the gallery, seed 4\n")
    assert "The gallery shows 20 of 70, seed 4, drawn by type and status." in " ".join(page.split())
    assert {post["pictures"][0]["status"] for post in data["posts"] if post["pictures"]} >= {"ok", "missing"}
    report("--tags", night.tags, "--sample", "20", "--seed", "4", output=tmp_path / "b")
    assert (tmp_path / "a" / "report.html").read_bytes() == (tmp_path / "b" / "report.html").read_bytes()


def test_two_nights(night: Night, tmp_path: Path) -> None:
    later = write_night(str(tmp_path / "later"), 80, seed=6)
    _, page, data = report("--tags", night.tags, "--tags", later.tags, output=tmp_path / "out")
    assert "Two nights" in page
    assert len(data["posts"]) == 80
    for row in (
        r"<bdi>posts</bdi></th><td class=\"number\">70</td><td class=\"number\">80</td>.*\+14\.3 % posts",
    ):
        assert re.search(row, page), row


def test_unfinished_tags_show_what_is_there(tmp_path: Path) -> None:
    night = write_night(str(tmp_path), 60, finished=False)
    (Path(night.tags) / "tags" / "w-torn.parquet").write_bytes(b"PAR1 half of it")
    printed, page, data = report("--tags", night.tags, output=tmp_path / "out")
    assert "note: The run is not finished: 30 of 60 posts are there and shown here." in printed
    assert "note: 1 file(s) are being written, or torn, and left out:" in printed
    assert "The run is not finished: 30 of 60 posts" in page
    assert len(data["posts"]) == 30


def test_an_archive_that_is_gone_or_has_been_moved(tmp_path: Path) -> None:
    night = write_night(str(tmp_path / "a"), 40)
    moved = tmp_path / "elsewhere"
    shutil.move(night.archive, moved)
    printed, _, data = report("--tags", night.tags, output=tmp_path / "out")
    assert re.search(
        r"note: The archive cannot be read from here, .*posts\.parquet does not exist.*--input", printed
    )
    assert {post["text"] for post in data["posts"]} == {None}
    assert "the archive with the picture is not at hand" in {
        p["why"] for post in data["posts"] for p in post["pictures"]
    }
    printed, _, data = report("--tags", night.tags, "--input", moved, output=tmp_path / "out")
    assert "note" not in printed
    assert all(post["text"] is not None for post in data["posts"])
    assert sum(picture["uri"] is not None for post in data["posts"] for picture in post["pictures"]) > 30
    # With annotations the texts are theirs.
    _, _, data = report("--tags", night.tags, "--data", night.data, output=tmp_path / "out")
    assert all(post["text"] is not None for post in data["posts"])


def test_pictures_that_are_others_now_or_not_allowed_here(tmp_path: Path) -> None:
    night = write_night(str(tmp_path), 12)
    for file in sorted((Path(night.archive) / "images").iterdir())[:3]:
        shutil.copy(Path(night.archive) / "images" / "0011-0.jpg", file)
        file.write_bytes(b"no picture") if file.name == "0002-0.jpg" else None
    _, _, data = report("--tags", night.tags, "--pictures.max_bytes", "60000", output=tmp_path / "out")
    why = {post["id"]: post["pictures"][0]["why"] for post in data["posts"] if post["pictures"]}
    assert "not for this page (unreadable: not a picture" in why["night-00002"]
    _, _, data = report(
        "--tags", night.tags, "--pictures.roots", f"[{tmp_path}/other]", output=tmp_path / "out"
    )
    assert not any(picture["uri"] for post in data["posts"] for picture in post["pictures"])


def test_s3(s3_bucket: str, tmp_path: Path) -> None:
    night = write_night(storage.join(s3_bucket, "night"), 30)
    done = call(
        "report", "--tags", night.tags, "--data", night.data, "--output", storage.join(s3_bucket, "out")
    )
    assert (done.returncode, done.stderr) == (0, "")
    page = storage.read_text(storage.join(s3_bucket, "out", "report.html"))
    data = page_data(page)
    assert len(data["posts"]) == 30
    assert sum(picture["uri"] is not None for post in data["posts"] for picture in post["pictures"]) > 25
    assert data["source"]["tags"] == f"{s3_bucket}/night/tags/tags/**/*.parquet"


@pytest.mark.usefixtures("ray_cluster")
@pytest.mark.parametrize("kind", ["parquet", "jsonl"])
def test_tags_of_a_real_run(kind: str, tiny_model: Path, tmp_path: Path) -> None:
    """Texts and pictures are found by what the run wrote down, in both formats, whatever is wrong with a post."""
    from mnerqg.config_jobs import TagConfig
    from mnerqg.distributed.tagging import tag_archive
    from mnerqg.distributed.tagging_plan import plan_tagging
    from tests.cheap_tagger import CheapTagger

    planted = write_archive(str(tmp_path / "archive"), 60, files=2, seed=1)
    if kind == "jsonl":
        for file in (tmp_path / "archive").glob("*.parquet"):
            rows = pq.read_table(file).to_pylist()
            lines = [json.dumps(row) for row in rows]
            file.with_suffix(".jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
            file.unlink()
    config = TagConfig(max_failed=1.0, pictures=PicturesConfig(max_bytes=MAX_BYTES, attempts=1))
    plan = plan_tagging(config, str(tiny_model), str(tmp_path / "archive"), str(tmp_path / "tags"))
    tag_archive(plan, CheapTagger.load)
    printed, page, data = report("--tags", tmp_path / "tags", output=tmp_path / "out")
    assert "note" not in printed
    assert "posts a second" in page
    posts = {post["id"]: post for post in data["posts"]}
    assert posts.keys() == planted.rows.keys()
    for name, expected in planted.rows.items():
        post = posts[name]
        (picture,) = post["pictures"]
        assert picture["status"] == expected.image_status
        assert (picture["uri"] is not None) == (expected.image_status == "ok"), picture
        assert post["text"] is not None or post["textStatus"] == "empty"
        for entity in post["entities"]:
            assert post["text"][entity["start"] : entity["end"]] == entity["text"]


@pytest.mark.parametrize(("files", "ending"), [(3, ".parquet"), (25, ".parquet"), (25, ".v1.jsonl.gz")])
def test_what_the_duckdb_query_reads(night: Night, tmp_path: Path, files: int, ending: str) -> None:
    posts = pq.read_table(Path(night.archive) / "posts.parquet").to_pylist()
    for number in range(files):
        part, file = posts[number::files], tmp_path / "archive" / f"{number:02d}{ending}"
        file.parent.mkdir(exist_ok=True)
        if ending.endswith("gz"):
            file.write_bytes(gzip.compress("".join(json.dumps(row) + "\n" for row in part).encode()))
        else:
            pq.write_table(pa.Table.from_pylist(part), file)
    _, _, data = report("--tags", night.tags, "--input", tmp_path / "archive", output=tmp_path / "out")
    assert all(post["text"] is not None for post in data["posts"])
    source = data["source"]
    assert source["tags"] == f"{night.tags}/tags/**/*.parquet"
    read = "read_json_auto" if source["archive"]["json"] else "read_parquet"
    count = duckdb.sql(f"SELECT count(DISTINCT post_id) FROM {read}({source['archive']['uris']})").fetchall()
    assert count == [(70,)]
    assert len(source["archive"]["uris"]) == (files if files <= 20 else 1)


def test_tags_of_no_run_and_without_anything_found(tmp_path: Path) -> None:
    row = {
        "post_id": "1",
        "entities": [],
        "regions": [],
        "row_hash": 1,
        "image_status": "none",
        "text_status": "empty",
    }
    tags = tmp_path / "copied"
    tags.mkdir()
    pq.write_table(pa.Table.from_pylist([row], schema=tags_schema()), tags / "a.parquet")
    printed, page, data = report("--tags", tags, output=tmp_path / "out")
    assert "note: The folder does not say which run its tags are of." in printed
    assert "note: The tags do not say which archive they are of" in printed
    assert "nothing was found" in page
    assert data["types"] == []


def test_a_training_alone(tmp_path: Path) -> None:
    printed, page, data = report("--model", write_training(tmp_path / "run"), output=tmp_path / "out")
    assert printed.startswith("report: ")
    assert 'id="gallery"' not in page
    assert [chart["id"] for chart in data["charts"]] == ["losses", "balance", "rates", "scores", "types"]


def test_bad_input(night: Night, tmp_path: Path) -> None:
    out = ("--output", tmp_path / "out")
    (tmp_path / "empty").mkdir()
    pq.write_table(pa.table({"post_id": ["1"]}), tmp_path / "empty" / "no.txt")
    refused("nothing to report on; give --tags", *out)
    refused("holds no tags; give the --output of jobs/tag.py", "--tags", tmp_path / "empty", *out)
    refused("does not exist", "--tags", tmp_path / "nowhere", *out)
    refused("holds no tags .no column image_status", "--tags", night.archive, *out)
    refused("--tags is given 3 times", *("--tags", night.tags) * 3, *out)
    refused("--data x is about tags; give --tags, too", "--model", "m", "--data", "x", *out)
    refused("x does not exist", "--tags", night.tags, "--input", tmp_path / "x", *out)
    refused("holds no Parquet files", "--tags", night.tags, "--data", night.data, "--split", "valid", *out)
    refused("sample is 0", "--tags", night.tags, "--sample", "0", *out)
    refused("unknown key sampel", "--tags", night.tags, "--sampel", "3", *out)
    assert not (tmp_path / "out").exists()


def test_the_documentation_names_what_there_is() -> None:
    text = (Path(__file__).parents[2] / "docs" / "report.md").read_text(encoding="utf-8")
    help_text = "".join(call(job, "--help").stdout for job in ("report", "tag"))
    named = set(re.findall(r"--[a-z][a-z_.]*", text)) - {"--pictures.", "--columns.", "--help"}
    assert len(named) > 8
    assert [option for option in named if f"{option} " not in help_text] == []
    assert (Path(__file__).parents[2] / "docs" / "report.png").stat().st_size < 300_000
