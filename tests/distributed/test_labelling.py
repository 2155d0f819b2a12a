"""Weak boxes on a real local Ray: nothing of the dataset is lost, and training reads what was written."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mnerqg.config import LossConfig
from mnerqg.config_jobs import ActorsConfig
from mnerqg.datasets.prepared import LABELS_FILE, is_labelled, read_posts, write_split
from mnerqg.distributed.labelling import label, summarise
from mnerqg.errors import ConfigError, RunError, StorageError
from mnerqg.io import storage
from mnerqg.io.lock import LOCK_FILE, locked
from mnerqg.model.checkpoint import load_model, save_model
from mnerqg.queries import load_queries
from mnerqg.schema import Box, Post, Span
from mnerqg.tagger import Tagger
from tests.builders import image_bytes

CONFIG = ActorsConfig(batch_posts=4, cpus_per_actor=0.5)
OLD = Box("PER", 0, 0, 3, 3, "weak", 0.5)


def posts(count: int) -> list[Post]:
    return [
        Post(
            post_id=str(number),
            text="Ada visits Oslo",
            image=image_bytes(size=(40 + number, 24), colour=(number * 9 % 256, 80, 40))
            if number % 4
            else None,
            entities=(Span(0, 3, "PER"),),
            boxes=(Box("PER", 4, 4, 20, 20), OLD) if number % 2 else (),
            boxes_annotated=number % 2 == 1,
        )
        for number in range(count)
    ]


def without_weak(post: Post) -> Post:
    return replace(post, boxes=tuple(box for box in post.boxes if box.source != "weak"))


def modified(output: str) -> dict[str, Any]:
    """When each file of the splits was written."""
    place = storage.locate(output)
    assert isinstance(place, storage.S3Place)
    found = storage.s3_client().list_objects_v2(Bucket=place.bucket, Prefix=place.prefix)["Contents"]
    keys = {entry["Key"].removeprefix(place.prefix): entry["LastModified"] for entry in found}
    return {key: when for key, when in keys.items() if "/" in key}


def test_every_post_with_a_picture_gets_a_box_of_every_type(
    ray_cluster: None, s3_bucket: str, tiny_model: Path
) -> None:
    data, output = f"{s3_bucket}/data", f"{s3_bucket}/labelled"
    given = {"train": posts(30), "valid": posts(9)}
    for split, of_split in given.items():
        write_split(of_split, f"{data}/{split}", rows_per_file=8)
    labels = label(str(tiny_model), data, output, CONFIG)

    tagger = Tagger.load(tiny_model)
    for split, of_split in given.items():
        found = list(read_posts(output, split))
        assert [without_weak(post) for post in found] == [
            without_weak(post) for post in of_split
        ]  # in order, too
        expected = [tagger.best_regions([post])[0] for post in of_split]
        for post, regions in zip(found, expected, strict=True):
            weak = [box for box in post.boxes if box.source == "weak"]
            assert OLD not in weak
            # Random weights may put a box wholly beside the picture.
            kept = [
                region for region in regions if region.x_max > region.x_min and region.y_max > region.y_min
            ]
            assert [box.type for box in weak] == [region.type for region in kept]
            for box, region in zip(weak, kept, strict=True):
                assert box.xyxy_px == pytest.approx(region.xyxy_px, abs=0.01)
                assert box.score == pytest.approx(region.score, abs=1e-4)
        assert sum(len(post.boxes) for post in found) > len(found)
        summary = labels["splits"][split]
        assert summary["posts"] == len(of_split)
        assert summary["grounded_queries"] == sum(bool(post.boxes) for post in of_split)

    assert json.loads(storage.read_text(f"{output}/{LABELS_FILE}")) == labels
    before = storage.list_files(output)
    assert label(str(tiny_model), data, output, CONFIG) == labels  # already done
    assert storage.list_files(output) == before

    # As a kill leaves it: the files that are there stay, only the missing ones are written.
    storage.delete_file(f"{output}/{LABELS_FILE}")
    storage.delete_file(f"{output}/train/part-00002.parquet")
    kept = modified(output)
    assert label(str(tiny_model), data, output, CONFIG) == labels
    after = modified(output)
    assert {name: time for name, time in after.items() if name in kept} == kept
    assert set(after) - set(kept) == {"train/part-00002.parquet"}
    assert storage.list_files(output) == before  # sizes, too

    write_split(posts(2), f"{s3_bucket}/other/train")
    with pytest.raises(StorageError, match=r"holds another labelling run \(data: \S+ there, \S+ now\)"):
        label(str(tiny_model), f"{s3_bucket}/other", output, CONFIG)


def test_labelling_a_dataset_into_itself(tiny_model: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    write_split(posts(3), str(data / "train"))
    before = sorted(data.rglob("*"))
    for output in (f"{data}/", f"file://{data}", f"{tmp_path}/x/../data"):
        with pytest.raises(StorageError, match="holds files of no labelling run"):
            label(str(tiny_model), str(data), output, CONFIG)
    assert sorted(data.rglob("*")) == before
    assert not is_labelled(str(data))


def test_a_second_labelling_into_the_same_output_is_refused(tiny_model: Path, tmp_path: Path) -> None:
    write_split(posts(3), str(tmp_path / "data" / "train"))
    output = str(tmp_path / "labelled")
    with locked(output), pytest.raises(RunError, match="is writing into"):
        label(str(tiny_model), str(tmp_path / "data"), output, CONFIG)
    assert [path.name for path in Path(output).iterdir()] == [LOCK_FILE]


def test_a_model_whose_grounding_learned_nothing_labels_nothing(tiny_model: Path, tmp_path: Path) -> None:
    taught = load_model(str(tiny_model))
    untaught = taught.config.model_copy(update={"loss": LossConfig(grounding_weight=0)})
    model = tmp_path / "model"
    save_model(model, model=taught.model, text_encoder=taught.text_encoder, config=untaught)
    with pytest.raises(
        ConfigError, match=r"answers no boxes; label with a model .*loss\.grounding_weight above 0"
    ):
        label(str(model), str(tmp_path / "data"), str(tmp_path / "labelled"), CONFIG)


def test_a_model_that_has_learned_other_types_is_asked_for_those_of_the_posts(
    ray_cluster: None, tiny_model: Path, tmp_path: Path
) -> None:
    data, output = tmp_path / "data", tmp_path / "labelled"
    post = Post("1", "Ada", image_bytes(), (Span(0, 3, "INVENTOR"),), (Box("INVENTOR", 1, 1, 9, 9),), True)
    write_split([post], str(data / "train"))
    with pytest.raises(ConfigError, match=r"answers PER, .* name INVENTOR; ask it for those: --queries"):
        label(str(tiny_model), str(data), str(output), CONFIG)
    assert not output.exists()
    queries = tmp_path / "queries.yaml"
    queries.write_text("- { type: INVENTOR, query: People who invent }\n")
    asked = CONFIG.model_copy(update={"queries": str(queries)})
    labels = label(str(tiny_model), str(data), str(output), asked)
    (found,) = read_posts(str(output), "train")
    tagger = Tagger.load(tiny_model, queries=load_queries(str(queries)))
    weak = [(box.type, box.xyxy_px) for box in found.boxes if box.source == "weak"]
    expected = [(region.type, region.xyxy_px) for region in tagger.best_regions([post])[0]]
    assert weak == [(kind, pytest.approx(xyxy_px, abs=0.01)) for kind, xyxy_px in expected]
    assert [kind for kind, _ in expected] == ["INVENTOR"]
    assert labels["splits"]["train"]["grounded_queries"] == 1


def test_the_summary_scores_weak_boxes_against_manual_ones() -> None:
    good, bad = Box("PER", 4, 4, 20, 19, "weak", 0.9), Box("PER", 30, 4, 40, 9, "weak", 0.9)
    manual = Box("PER", 4, 4, 20, 20)
    boxed = [
        Post("1", "a", entities=(Span(0, 1, "PER"),), boxes=(manual, good), boxes_annotated=True),
        Post("2", "b", boxes=(manual, bad), boxes_annotated=True),
        Post("3", "c", boxes=(good,)),
        Post("4", "d", entities=(Span(0, 1, "PER"),), boxes=(replace(bad, score=0.1),)),
    ]
    found = summarise(iter(boxed), ["PER", "LOC"])
    assert (found["posts"], found["weak_boxes"], found["grounded_queries"]) == (4, {"PER": 4}, 2)
    assert (found["named"], found["learned"]) == (2, 1)
    assert found["accuracy_50"] == 0.5
