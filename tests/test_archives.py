import io
import pickle
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from mnerqg.config_jobs import PicturesConfig
from mnerqg.schema import ROW_HASH
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
from tests.cheap_tagger import TYPES, CheapTagger
from tests.stages import Stages

KINDS = len(PICTURES) + len(TEXTS) + 2


def cheap_stages(model: Path, folder: str) -> Stages:
    pictures = PicturesConfig(roots=(folder,), max_bytes=MAX_BYTES, attempts=1)
    return Stages(model, CheapTagger(), pictures=pictures)


@pytest.mark.parametrize("place", ["local", "s3"])
def test_planted_is_what_tagging_finds(
    place: str, request: pytest.FixtureRequest, tmp_path: Path, tiny_model: Path
) -> None:
    folder = f"{request.getfixturevalue('s3_bucket')}/archive" if place == "s3" else str(tmp_path / "archive")
    planted = write_archive(folder, 100, files=3, seed=5, bad_share=0.5, side=(80, 60))
    tagged = cheap_stages(tiny_model, folder)(read_tags(folder))
    assert len(tagged) == 100
    for row in tagged:
        expected = planted.rows[row["post_id"]]
        size = None if row["image_width"] is None else (row["image_width"], row["image_height"])
        found = (row["image_status"], row["text_status"], size)
        assert found == (expected.image_status, expected.text_status, expected.size), expected.oddity
    assert planted.image_status == Counter(row["image_status"] for row in tagged)
    assert planted.text_status == Counter(row["text_status"] for row in tagged)
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


def test_answers_are_in_keeping_with_the_post(tmp_path: Path, tiny_model: Path) -> None:
    write_archive(str(tmp_path), 60, files=1, seed=2, bad_share=0.3, side=(80, 60))
    rows = read_tags(str(tmp_path))
    stages = cheap_stages(tiny_model, str(tmp_path))
    tagged = stages(rows)
    alone = [stages(rows.slice(number, 1))[0] for number in reversed(range(60))][::-1]
    assert [row | {ROW_HASH: 0} for row in tagged] == [row | {ROW_HASH: 0} for row in alone]
    assert {entity["type"] for row in tagged for entity in row["entities"]} == set(TYPES)
    assert {region["type"] for row in tagged for region in row["regions"]} == set(TYPES)
    for text, row in zip(rows["text"].to_pylist(), tagged, strict=True):
        check(text or "", row)


def check(text: str, row: dict[str, Any]) -> None:
    assert [one["type"] for one in row["existence"]] == list(TYPES)
    assert not row["regions"] or row["image_status"] == "ok"
    for entity in row["entities"]:
        assert text[entity["start"] : entity["end"]] == entity["text"]
        types = [region["type"] for region in row["regions"]]
        assert (entity["region"] is None) == (entity["type"] not in types)
        assert entity["region"] is None or types[entity["region"]] == entity["type"]
    for region in row["regions"]:
        assert 0 <= region["x_min"] < region["x_max"] <= row["image_width"]
        assert 0 <= region["y_min"] < region["y_max"] <= row["image_height"]


_ANSWERS = """
import numpy as np
from mnerqg.inputs.sentences import Sentences, Shown

pieces = np.arange(9)
words = pieces >= 0
sentences = Sentences(pieces, words, words, np.array([0, 4]), np.array([4, 5]))
shown = Shown([np.full((64, 64, 3), 7, np.uint8)], np.array([1]), np.array([0]))
found = finder.answer(finder.collate(sentences, shown), sentences)
answers = [getattr(found, name).tolist() for name in ("existence", "spans", "boxes_canvas")]
"""


def test_loads_without_torch() -> None:
    """As a Ray worker does it: pickled, in another process, where strings hash otherwise."""
    here: dict[str, Any] = {"finder": CheapTagger().finder}
    exec(_ANSWERS, here)
    code = (
        "import pickle, sys\n"
        f"finder = pickle.loads({pickle.dumps(CheapTagger.load)!r})('anywhere').finder\n"
        f"{_ANSWERS}\n"
        "assert 'torch' not in sys.modules and 'ray' not in sys.modules\n"
        "print(answers)"
    )
    root = Path(__file__).resolve().parents[1]
    run = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=False)
    assert run.stdout == f"{here['answers']}\n", run.stderr
