import io
import pickle
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from mnerqg.config_jobs import ImageLimits, PicturesConfig
from mnerqg.inputs.posts import PreparedPost, prepare_post
from mnerqg.io.picture_store import PictureStore
from mnerqg.schema import Post, TaggedPost
from tests.archives import (
    ARCHIVE_SCHEMA,
    MAX_BYTES,
    PICTURES,
    TEXTS,
    assert_same_rows,
    photo,
    read_tags,
    sorted_rows,
    write_archive,
    write_cheap_archive,
)
from tests.cheap_tagger import TEXT_LIMIT, TYPES, CheapTagger

KINDS = len(PICTURES) + len(TEXTS) + 2
SIDE = 64


def prepared(rows: list[dict[str, str]], folder: str) -> list[PreparedPost]:
    """What the picture stages make of the rows of an archive."""
    fetched = PictureStore(PicturesConfig(roots=(folder,), max_bytes=MAX_BYTES, attempts=1)).fetch_many(
        [row["image_uri"] for row in rows]
    )
    return [
        prepare_post(Post(row["post_id"], row["text"], one.data), SIDE, ImageLimits())
        if one.status in ("ok", "none")
        else PreparedPost(row["text"], image_status=one.status, error=one.error)
        for row, one in zip(rows, fetched, strict=True)
    ]


@pytest.mark.parametrize("place", ["local", "s3"])
def test_planted_is_what_tagging_finds(place: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    folder = f"{request.getfixturevalue('s3_bucket')}/archive" if place == "s3" else str(tmp_path / "archive")
    planted = write_archive(folder, 100, files=3, seed=5, bad_share=0.5, side=(80, 60))
    rows = read_tags(folder).to_pylist()
    tagged = CheapTagger(SIDE, "cheap").tag_prepared(prepared(rows, folder))
    assert len(tagged) == 100
    for row, post in zip(rows, tagged, strict=True):
        expected = planted.rows[row["post_id"]]
        size = None if post.image_width is None else (post.image_width, post.image_height)
        found = (post.image_status, post.text_status, size)
        assert found == (expected.image_status, expected.text_status, expected.size), expected.oddity
    assert planted.image_status == Counter(post.image_status for post in tagged)
    assert planted.text_status == Counter(post.text_status for post in tagged)
    assert set(planted.oddities.values()) == {2}
    assert len(planted.oddities) == KINDS


def test_shape_of_an_archive(tmp_path: Path) -> None:
    planted = write_archive(str(tmp_path / "a"), 100, files=3, seed=1, side=(80, 60))
    again = write_archive(str(tmp_path / "b"), 100, files=3, seed=1, side=(80, 60))
    files = [
        {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
        for folder in (tmp_path / "a", tmp_path / "b")
    ]
    assert (planted, files[0]) == (again, files[1])
    archives = [pq.ParquetFile(path) for path in sorted((tmp_path / "a").glob("*.parquet"))]
    assert [(one.metadata.num_rows, one.num_row_groups) for one in archives] == [(33, 3), (33, 3), (34, 3)]
    assert all(one.schema_arrow.equals(ARCHIVE_SCHEMA) for one in archives)
    assert set(planted.oddities.values()) == {1}
    clean = write_archive(str(tmp_path / "c"), 20, files=1, seed=1, bad_share=0, side=(80, 60))
    assert (clean.image_status, clean.text_status) == ({"ok": 20}, {"ok": 20})


def test_photos_are_like_photographs() -> None:
    photos = [photo(number, (640, 480)) for number in range(3)]
    assert all(20_000 < len(data) < MAX_BYTES for data in photos)
    assert len(set(photos)) == 3
    with Image.open(io.BytesIO(photos[0])) as image:
        assert (image.format, image.size) == ("JPEG", (640, 480))


def test_cheap_archive(tmp_path: Path) -> None:
    write_cheap_archive(str(tmp_path), 10_000, 3)
    posts = read_tags(str(tmp_path))
    assert posts.column_names == ["post_id", "text"]
    assert len(set(posts["post_id"].to_pylist())) == 10_000
    assert len(list(tmp_path.glob("*.parquet"))) == 3


# ---- reading ---------------------------------------------------------------------------------------


def tags(hashes: list[int], scores: list[float]) -> pa.Table:
    entities = [[{"type": "PER", "score": score}] for score in scores]
    kind = pa.list_(pa.struct([("type", pa.string()), ("score", pa.float32())]))
    return pa.table({"entities": pa.array(entities, kind), "row_hash": pa.array(hashes, pa.uint64())})


def test_read_tags(tmp_path: Path) -> None:
    for number, folder in enumerate(("lang=en", "lang=pt")):
        (tmp_path / folder).mkdir()
        pq.write_table(tags([number], [0.5]), tmp_path / folder / "a.parquet")
    (tmp_path / "_state").mkdir()
    pq.write_table(tags([9], [0.5]), tmp_path / "_state" / "a.parquet")
    found = read_tags(str(tmp_path))
    assert found.column_names == ["entities", "row_hash"]
    assert sorted_rows(found)["row_hash"].to_pylist() == [0, 1]
    pq.write_table(found.drop_columns(["entities"]), tmp_path / "z.parquet")
    with pytest.raises(AssertionError, match=r"z\.parquet has another schema"):
        read_tags(str(tmp_path))


def test_assert_same_rows() -> None:
    largest = 2**64 - 1
    table = tags([3, 1, largest], [0.25, float("nan"), 0.1])
    assert_same_rows(table, table)
    assert_same_rows(table, pa.concat_tables([table[2:], table[:2]]))
    for other, message in (
        (tags([3, 1, largest], [0.25, 0.5, 0.1]), "the column entities differs in 1 rows, .* row_hash 1: "),
        (tags([3, 1, largest], [0.25, float("nan"), 0.1000001]), f"row_hash {largest}: "),
        (tags([3, 1], [0.25, float("nan")]), f"1 row_hash on the left only, such as {largest}"),
        (tags([3, 1, largest, 7], [0.25, float("nan"), 0.1, 0]), "1 row_hash on the right only, such as 7"),
        (tags([3, 1, 1], [0.25, float("nan"), 0.1]), "1 row_hash more than once on the right, such as 1"),
        (table.append_column("new", pa.array([1, 2, 3])), "the schemas differ"),
    ):
        with pytest.raises(AssertionError, match=message):
            assert_same_rows(table, other)


# ---- the cheap tagger ------------------------------------------------------------------------------


def test_answers_are_in_keeping_with_the_post(tmp_path: Path) -> None:
    write_archive(str(tmp_path), 60, files=1, seed=2, bad_share=0.3, side=(80, 60))
    posts = prepared(read_tags(str(tmp_path)).to_pylist(), str(tmp_path))
    tagger = CheapTagger(SIDE, "cheap")
    tagged = tagger.tag_prepared(posts)
    assert tagged == [tagger.tag_prepared([post])[0] for post in reversed(posts)][::-1]
    assert {entity.type for post in tagged for entity in post.entities} == set(TYPES)
    assert {region.type for post in tagged for region in post.regions} == set(TYPES)
    for post, answer in zip(posts, tagged, strict=True):
        check(post, answer)


def check(post: PreparedPost, answer: TaggedPost) -> None:
    text = post.text or ""
    assert [kind for kind, _ in answer.existence] == list(TYPES)
    assert bool(answer.regions) <= (post.pixels is not None)
    for entity in answer.entities:
        assert text[entity.start : entity.end] == entity.text
        assert (entity.region is None) == (entity.type not in [region.type for region in answer.regions])
        assert entity.region is None or answer.regions[entity.region].type == entity.type
    for region in answer.regions:
        assert answer.image_width is not None
        assert answer.image_height is not None
        assert 0 <= region.x_min < region.x_max <= answer.image_width
        assert 0 <= region.y_min < region.y_max <= answer.image_height
    boxes = [number for region in answer.regions for number in (*region.xyxy_px, region.score)]
    numbers = [
        *boxes,
        *(entity.score for entity in answer.entities),
        *(score for _, score in answer.existence),
    ]
    assert [float(np.float32(number)) for number in numbers] == numbers


def test_words_and_limits() -> None:
    tagger = CheapTagger(SIDE, "cheap")
    texts = ["👩🏽‍🚀 Ada in 🇵🇹 Lisbon", "a\0b Émile x", "\ud800 Ada", "X " * TEXT_LIMIT, "", None]
    tagged = tagger.tag_prepared([PreparedPost(text) for text in texts])
    words = [[entity.text for entity in post.entities] for post in tagged]
    assert words[:3] == [["Ada", "Lisbon"], ["Émile"], ["Ada"]]
    assert len(words[3]) == TEXT_LIMIT // 2
    assert [post.text_status for post in tagged] == ["ok", "ok", "ok", "truncated", "empty", "empty"]


def test_loads_from_a_model_without_torch(tiny_model: Path) -> None:
    """As a Ray worker does it: pickled, in another process, where strings hash otherwise."""
    tagger = CheapTagger.load(str(tiny_model))
    assert tagger.config.model.image_side == SIDE
    assert re.fullmatch(r"\w{16,}", tagger.model_id)
    pickled = pickle.dumps(CheapTagger.load)
    code = (
        "import pickle, sys, types\n"
        f"tagger = pickle.loads({pickled!r})({str(tiny_model)!r})\n"
        "post = types.SimpleNamespace(text='Ada', pixels=None, letterbox=None, image_status='none', "
        "error=None)\n"
        "assert 'torch' not in sys.modules and 'ray' not in sys.modules\n"
        "print(tagger.model_id, tagger.tag_prepared([post]))"
    )
    root = Path(__file__).resolve().parents[1]
    run = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=False)
    assert run.stdout == f"{tagger.model_id} {tagger.tag_prepared([PreparedPost('Ada')])}\n", run.stderr
