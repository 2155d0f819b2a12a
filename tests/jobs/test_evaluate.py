"""jobs/evaluate.py: the same scores as the library gives, in the table and in the file."""

import json
from pathlib import Path

import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from jobs import evaluate
from mnerqg.datasets.prepared import read_posts, write_split
from mnerqg.distributed.evaluation import PER_POST_SCHEMA
from mnerqg.errors import ConfigError, DataError, ModelError, StorageError
from mnerqg.schema import Box, Post, Span
from mnerqg.scoring.score import score, with_pictures
from mnerqg.tagger import Tagger
from tests.builders import image_bytes


def _posts() -> list[Post]:
    return [
        Post(
            str(number),
            "Ada visits Oslo",
            image_bytes(),
            (Span(0, 3, "PER"),),
            (Box("PER", 2, 2, 30, 20),),
            True,
        )
        for number in range(37)
    ]


def test_every_row_is_scored_exactly_once(
    ray_cluster: None, tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_split(iter(_posts()), str(tmp_path / "data" / "test"), rows_per_file=10)
    arguments = ["--model", str(tiny_model), "--data", str(tmp_path / "data"), "--split", "test"]
    outputs = ["--output", str(tmp_path / "scores.json"), "--per-post", str(tmp_path / "posts.parquet")]
    evaluate.main(
        [*arguments, *outputs, "--actors", "2", "--batch_posts", "4", "--pictures", "none,true,shuffled"]
    )

    scores = json.loads((tmp_path / "scores.json").read_text())
    tagger = Tagger.load(tiny_model, device="cpu")
    expected = score(tagger, read_posts(str(tmp_path / "data"), "test")).scores()
    assert scores["posts"] == 37
    assert scores["grounded_queries"] == 37
    assert {key: scores[key] for key in expected} == pytest.approx(expected)

    bare = score(tagger, with_pictures(read_posts(str(tmp_path / "data"), "test"), "none")).scores()
    assert scores["none"] == pytest.approx({key: bare[key] for key in scores["none"]})
    assert sorted(scores["none"]) == sorted(scores["shuffled"])
    assert {"precision", "recall", "f1", "f1_PER"} <= set(scores["none"])
    # The pictures are all the same here, but that of a batch of one goes.
    assert scores["shuffled"]["f1"] == pytest.approx(scores["f1"], abs=0.05)

    posts = pq.read_table(tmp_path / "posts.parquet")
    assert posts.schema == PER_POST_SCHEMA
    assert sorted(posts["post_id"].to_pylist()) == sorted(
        str(number) for number in range(37) for _ in range(4)
    )
    correct, said, wanted = (pc.sum(posts[name]).as_py() for name in ("correct", "predicted", "gold"))
    assert 2 * correct / max(said + wanted, 1) == pytest.approx(scores["f1"])
    assert pc.sum(posts["iou_50"]).as_py() / 37 == pytest.approx(scores["accuracy_50"])

    printed = capsys.readouterr().out
    assert "test: 37 posts, 37 entities, 37 grounded queries" in printed
    assert "GMNER F1" in printed
    assert "F1, shuffled pictures" in printed


def test_pictures_of_no_kind_are_refused() -> None:
    with pytest.raises(ConfigError, match="--pictures names 'mixed'; choose from true, shuffled, none"):
        evaluate.main(["--model", "m", "--data", "d", "--output", "o", "--pictures", "true,mixed"])


def test_a_place_that_cannot_be_written_is_named_before_the_scoring(tiny_model: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    arguments = ["--model", str(tiny_model), "--data", str(tmp_path), "--output"]
    with pytest.raises(StorageError, match="not a directory"):
        evaluate.main([*arguments, str(tmp_path / "file" / "scores.json")])
    with pytest.raises(StorageError, match="not a directory"):
        evaluate.main([*arguments, str(tmp_path / "a.json"), "--per-post", str(tmp_path / "file" / "b")])


def test_what_is_missing_is_named_before_any_cluster(
    no_cluster: None, tiny_model: Path, tmp_path: Path
) -> None:
    output = ["--output", str(tmp_path / "scores.json")]
    with pytest.raises(DataError, match="test holds no Parquet files"):
        evaluate.main(["--model", str(tiny_model), "--data", str(tmp_path), *output])
    write_split(iter(_posts()), str(tmp_path / "test"))
    with pytest.raises(ModelError, match=r"not a complete model directory: model\.json is missing"):
        evaluate.main(["--model", str(tmp_path), "--data", str(tmp_path), *output])
