"""Tags to people and back: nothing is lost, moved or guessed at on the way."""

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree.ElementTree import parse

import numpy as np
import pyarrow.parquet as pq
import pytest

from jobs.exchange import main
from mnerqg.datasets.prepared import count_posts, read_posts
from mnerqg.errors import MnerqgError
from mnerqg.io import storage
from tests.exchange.tagged import TYPES, post, write_run

# The example of Label Studio's documentation, "Label Studio JSON format of annotated tasks", with its layout, keys and
# values; the picture's address is that of a file here.
EXAMPLE: dict[str, Any] = {
    "id": 1,
    "created_at": "2021-03-09T21:52:49.513742Z",
    "updated_at": "2021-03-09T22:16:08.746926Z",
    "project": 83,
    "data": {"image": "640.jpg"},
    "annotations": [
        {
            "id": "1001",
            "result": [
                {
                    "from_name": "tag",
                    "id": "Dx_aB91ISN",
                    "source": "$image",
                    "to_name": "img",
                    "type": "rectanglelabels",
                    "value": {
                        "height": 10.458911419423693,
                        "rectanglelabels": ["Moonwalker"],
                        "rotation": 0,
                        "width": 12.4,
                        "x": 50.8,
                        "y": 5.869797225186766,
                    },
                }
            ],
            "was_cancelled": False,
            "ground_truth": False,
            "created_at": "2021-03-09T22:16:08.728353Z",
            "updated_at": "2021-03-09T22:16:08.728378Z",
            "lead_time": 4.288,
            "result_count": 0,
            "task": 1,
            "completed_by": 10,
        }
    ],
    "predictions": [
        {"created_ago": "3 hours", "model_version": "model 1", "result": []},
        {"created_ago": "4 hours", "model_version": "model 2", "result": []},
    ],
}


def posts(count: int) -> list[dict[str, Any]]:
    drawn = random.Random(20)
    return [post(number, drawn) for number in range(count)]


def expected(count: int) -> dict[str, tuple[str, list[Any], list[list[Any]]]]:
    """By id: the text, the entities, and the boxes of each picture."""
    found = {}
    for one in posts(count):
        spans = sorted((entity["start"], entity["end"], entity["type"]) for entity in one["entities"])
        boxes: list[list[Any]] = [[] for _ in one["sizes"]]
        for region in one["regions"]:
            sides = (region[side] for side in ("x_min", "y_min", "x_max", "y_max"))
            boxes[region["image_index"]].append((region["type"], *map(float, map(np.float32, sides))))
        found[one["post_id"]] = (one["text"], spans, [sorted(own) for own in boxes] or [[]])
    return found


def imported(dataset: Path) -> dict[str, tuple[str | None, list[Any], list[list[Any]]]]:
    found: dict[str, tuple[str | None, list[Any], list[list[Any]]]] = {}
    for split in ("train", "valid"):
        for row in read_posts(str(dataset), split):
            spans = [(span.start, span.end, span.type) for span in row.entities]
            entry = found.setdefault(row.post_id, (row.text, spans, []))
            entry[2].append(sorted((box.type, *box.xyxy_px) for box in row.boxes))
            assert row.boxes_annotated == (row.image is not None)
    return found


def annotate(task: dict[str, Any], change: Callable[[dict[str, Any]], object]) -> dict[str, Any]:
    """A task as it is exported when a person has submitted its prediction."""
    results = task["predictions"][0]["result"]
    for result in results:
        change(result)
    return {**task, "id": 1, "annotations": [{"id": 1, "result": results, "was_cancelled": False}]}


def export(tags: Path, output: Path, kind: str, *rest: str) -> Any:
    main(["export", "--format", kind, "--tags", str(tags), "--output", str(output), *rest])
    name = "coco.json" if kind == "coco" else "tasks.json"
    return json.loads((output / name).read_text(encoding="utf-8"))


def bring_back(corrected: Any, folder: Path, kind: str, *rest: str, output: str = "dataset") -> Path:
    (folder / "corrected.json").write_text(json.dumps(corrected), encoding="utf-8")
    options = ["--input", str(folder / "corrected.json"), "--output", str(folder / output)]
    main(["import", "--format", kind, *options, "--pictures.roots", f"[{folder / 'archive'}]", *rest])
    return folder / output


@pytest.mark.parametrize("unit", ["utf-16", "code-points"])
def test_100_posts_there_and_back(tmp_path: Path, unit: str) -> None:
    tags = write_run(tmp_path, posts(100))
    tasks = export(tags, tmp_path / "out", "label-studio")

    def as_label_studio(task: dict[str, Any]) -> Callable[[dict[str, Any]], None]:
        units = task["data"]["text"].encode("utf-16-le")

        def change(result: dict[str, Any]) -> None:
            value = result["value"]
            if result["type"] == "labels" and unit == "code-points":
                value |= {
                    name: len(units[: 2 * value[name]].decode("utf-16-le")) for name in ("start", "end")
                }
                value["text"] = value["text"].replace("\n", "\\n")

        return change

    dataset = bring_back(
        [annotate(task, as_label_studio(task)) for task in tasks], tmp_path, "label-studio", "--overwrite"
    )
    assert imported(dataset) == expected(100)
    summary = json.loads((dataset / "summary.json").read_text())
    assert summary["unclear"] == []
    assert 0.1 < count_posts(str(dataset), "valid") / count_posts(str(dataset), "train") < 0.5
    labels = parse(tmp_path / "out" / "config.xml").findall("Labels/Label")
    assert [label.get("value") for label in labels] == list(TYPES)


def test_100_posts_there_and_back_in_coco(tmp_path: Path) -> None:
    tags = write_run(tmp_path, posts(100))
    document = export(tags, tmp_path / "out", "coco")
    assert imported(bring_back(document, tmp_path, "coco")) == expected(100)
    # A tool that numbers anew and drops what is not COCO's.
    renumbered = {
        "images": [{**image, "id": image["id"] + 500} for image in reversed(document["images"])],
        "annotations": [{**one, "image_id": one["image_id"] + 500} for one in document["annotations"]],
        "categories": document["categories"],
    }
    with pytest.raises(MnerqgError, match="the tool dropped them"):
        bring_back(renumbered, tmp_path, "coco", output="again")


def test_coco_without_texts_takes_them_from_what_was_exported(tmp_path: Path) -> None:
    # Of each picture one post: by their names alone they are told apart.
    drawn = [{**one, "sizes": one["sizes"][:1], "regions": []} for one in posts(30) if one["sizes"]][:1]
    tags = write_run(tmp_path, drawn)
    document = export(tags, tmp_path / "out", "coco")
    document["images"][0]["id"] = 77
    document["annotations"] = [{"id": 1, "image_id": 77, "category_id": 2, "bbox": [1, 2, 30, 40]}]
    del document["posts"]
    exported = str(tmp_path / "out" / "coco.json")
    dataset = bring_back(document, tmp_path, "coco", "--exported", exported, "--valid", "0")
    (row,) = read_posts(str(dataset), "train")
    assert [(box.type, *box.xyxy_px) for box in row.boxes] == [("LOC", 1.0, 2.0, 31.0, 42.0)]
    assert (row.post_id, row.text) == (drawn[0]["post_id"], drawn[0]["text"])


def test_coco_that_is_not_laid_out_as_such_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tags = write_run(tmp_path, posts(5))
    document = export(tags, tmp_path / "out", "coco")
    box = document["annotations"][0]
    odd: list[Any] = [None, *({**box, "bbox": value} for value in (5, [None, 0, 1, 1], ["a"] * 4))]
    document |= {"annotations": odd, "posts": [*document["posts"], None]}
    bring_back(document, tmp_path, "coco", "--valid", "0")
    printed = capsys.readouterr().out
    assert "not understood (5):" in printed
    assert "annotation number 1: is not laid out as in COCO" in printed
    assert "post number 6: is not laid out as it was exported" in printed


def test_two_posts_with_the_same_picture_keep_their_boxes(tmp_path: Path) -> None:
    """The tool has dropped the texts, and left the ids as they were."""
    tags = write_run(tmp_path, posts(100))
    document = export(tags, tmp_path / "out", "coco")
    assert len({image["file_name"] for image in document["images"]}) < len(document["images"])
    del document["posts"]
    exported = str(tmp_path / "out" / "coco.json")
    assert imported(bring_back(document, tmp_path, "coco", "--exported", exported)) == expected(100)


@pytest.mark.parametrize("pictures", ["image", "image_uri", "structs", "data URIs"])
def test_other_archives(tmp_path: Path, pictures: str) -> None:
    one_picture = [
        {**one, "sizes": one["sizes"][:1], "regions": [r for r in one["regions"] if r["image_index"] == 0]}
        for one in posts(20)
    ]
    tags = write_run(tmp_path, one_picture, pictures=pictures)
    tasks = export(tags, tmp_path / "out", "label-studio")
    uris = [uri for task in tasks for uri in task["data"]["pictures"]]
    assert len(uris) == sum(bool(one["sizes"]) for one in one_picture)
    assert all(Path(uri).is_file() for uri in uris)
    written, archive = tmp_path / "out" / "pictures", tmp_path / "archive"
    places = {"image_uri": {archive}, "structs": {written, archive}}.get(pictures, {written})
    assert {Path(uri).parent for uri in uris} == places
    assert all(Path(uri).read_bytes()[:2] == b"\xff\xd8" for uri in uris)


def test_a_relative_picture_lies_below_the_root_that_has_it(tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    tags = write_run(tmp_path, posts(20), roots=(tmp_path / "first", other))
    for file in (tmp_path / "archive").glob("*.jpg"):
        file.rename(other / file.name)
    uris = [
        uri for task in export(tags, tmp_path / "out", "label-studio") for uri in task["data"]["pictures"]
    ]
    assert uris
    assert all(Path(uri).parent == other and Path(uri).is_file() for uri in uris)


def test_a_sample_is_the_same_every_time(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tags = write_run(tmp_path, posts(30))
    (tags / "_SUCCESS").unlink()
    (tags / "_manifest.json").unlink()
    first, again, other = (
        [task["data"]["post_id"] for task in export(tags, tmp_path / "out", "label-studio", *rest)]
        for rest in (["--sample", "10"], ["--sample", "10"], ["--sample", "10", "--seed", "1"])
    )
    assert first == again != other
    assert len(first) == 10
    assert "is not finished" in capsys.readouterr().out


def test_an_unfinished_run_with_a_torn_file_and_one_that_failed(tmp_path: Path) -> None:
    """What is being written, or torn, is passed over; a manifest without _SUCCESS has no say in the types."""
    tags = write_run(tmp_path, posts(30))
    (tags / "_SUCCESS").unlink()
    whole = (tags / "tags" / "a-0.parquet").read_bytes()
    (tags / "tags" / "torn.parquet").write_bytes(whole[:-100])
    document = export(tags, tmp_path / "out", "coco")
    assert len(document["posts"]) == len(expected(30))
    assert {one["name"] for one in document["categories"]} >= {
        kind for _, entities, _ in expected(30).values() for *_, kind in entities
    }


def test_the_example_of_the_documentation(tmp_path: Path) -> None:
    write_run(tmp_path, posts(1))
    dataset = bring_back([EXAMPLE], tmp_path, "label-studio", "--valid", "0")
    (row,) = read_posts(str(dataset), "train")
    assert (row.post_id, row.text, row.entities) == ("1", "", ())
    (box,) = row.boxes
    assert box.type == "Moonwalker"
    percent = (50.8, 5.869797225186766, 50.8 + 12.4, 5.869797225186766 + 10.458911419423693)
    pixels = [share * edge / 100 for share, edge in zip(percent, (640, 427) * 2, strict=True)]
    assert box.xyxy_px == pytest.approx(pixels, abs=1e-4)


def test_what_is_not_understood_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_run(tmp_path, posts(1))

    def labels(start: int, end: int, text: str) -> dict[str, Any]:
        value = {"start": start, "end": end, "text": text, "labels": ["PER"]}
        return {"id": f"{start}", "type": "labels", "value": value}

    def rectangle(name: str, x: float, width: float, rotation: float = 0, **more: Any) -> dict[str, Any]:
        value = {
            "x": x,
            "y": 1,
            "width": width,
            "height": 5,
            "rotation": rotation,
            "rectanglelabels": ["PER"],
        }
        return {"id": name, "type": "rectanglelabels", "value": value, **more}

    def task(number: int, results: list[Any], *more: Any, **data: Any) -> dict[str, Any]:
        data = {"post_id": f"p{number}", "text": "😀 Ada of Rio", "pictures": ["90.jpg"], **data}
        return {"id": number, "data": data, "annotations": [{"result": results}, *more]}

    cancelled = {"result": [], "was_cancelled": True}
    tasks = [
        task(
            1, [labels(2, 5, "Ada"), labels(7, 9, "Eve"), labels(50, 60, "x"), {"id": "c", "type": "choices"}]
        ),
        task(2, [rectangle("a", 10, 20, 30), rectangle("b", 200, 20), rectangle("c", 90, 20)], cancelled),
        task(3, [rectangle("d", 1, 2)], pictures=["90.jpg", "61.jpg"]),
        task(4, [], {"result": []}),
        task(5, [rectangle("e", 1, 2)], pictures=["gone.jpg"]),
        task(6, [rectangle("f", 1, 2, original_width=60, original_height=90)]),
        task(7, [{"id": "g"}]),
        {"id": 8, "data": {"text": "nobody looked"}, "predictions": [{"result": []}]},
    ]
    dataset = bring_back(tasks, tmp_path, "label-studio", "--valid", "0")
    rows = list(read_posts(str(dataset), "train"))
    assert [(row.post_id, len(row.entities), len(row.boxes), row.boxes_annotated) for row in rows] == [
        ("p1", 1, 0, True),
        ("p2", 0, 1, True),
        ("p3", 0, 0, True),
        ("p3", 0, 0, True),
        ("p5", 0, 0, False),
        ("p6", 0, 0, False),
    ]
    assert rows[1].boxes[0].x_max == 90
    unclear = json.loads((dataset / "summary.json").read_text())["unclear"]
    for line, words in zip(
        unclear,
        (
            "task 1, result 7: PER [7:9] is no part of the text where 'Eve' is said to stand; left out",
            "task 1, result 50: PER [50:60] is no part of the text where 'x' is said to stand; left out",
            "task 1, result c: is of the type 'choices', not labels or rectanglelabels; left out",
            "task 2, result a: is rotated, and boxes here are upright; left out",
            "task 3, result d: does not say in which of the 2 pictures it lies",
            "task 4: has 2 annotations; mark one of them as ground truth",
            "task 7: is not laid out as Label Studio's tasks are (KeyError: 'type')",
            "task 2, result b: box outside the picture of 90 x 60 pixels",
            "task 5: its picture gone.jpg is left out with its 1 box(es)",
            "task 6: its picture 90.jpg has 90 x 60 pixels, but was annotated with 60 x 90",
        ),
        strict=True,
    ):
        assert line.startswith(words)
    printed = capsys.readouterr().out
    assert "not understood (10):" in printed
    assert unclear[0] in printed


@pytest.mark.parametrize(
    ("text", "kind", "words"),
    [
        ("{", "label-studio", "is no JSON"),
        ('[{"id": 1, "text": "a"}]', "label-studio", "not as JSON-MIN"),
        ('[{"data": {"text": "a"}}]', "label-studio", "has no annotated posts; nothing is written"),
        ("[]", "coco", "has no lists images, annotations, categories"),
        (
            '{"images": [{}], "annotations": [], "categories": []}',
            "coco",
            "a picture without id or file_name",
        ),
    ],
)
def test_files_that_are_something_else(tmp_path: Path, text: str, kind: str, words: str) -> None:
    (tmp_path / "f.json").write_text(text)
    with pytest.raises(MnerqgError, match=words) as caught:
        main(
            ["import", "--format", kind, "--input", str(tmp_path / "f.json"), "--output", str(tmp_path / "d")]
        )
    assert caught.value.exit_code == 2
    assert not (tmp_path / "d").exists()


def test_an_archive_that_has_changed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tags = write_run(tmp_path, posts(12))
    posts_file = tmp_path / "archive" / "posts.parquet"
    pq.write_table(pq.read_table(posts_file).slice(0, 9), posts_file)
    assert len(export(tags, tmp_path / "out", "label-studio")) == 9
    assert "3 tagged rows are no posts of the archive any more" in capsys.readouterr().out


def test_what_is_refused(tmp_path: Path) -> None:
    tags = write_run(tmp_path, posts(3))
    command = ["export", "--format", "coco", "--output", str(tmp_path / "out")]
    with pytest.raises(MnerqgError, match="is no tagging run"):
        main([*command, "--tags", str(tmp_path / "nothing")])
    with pytest.raises(MnerqgError, match="unexpected argument '--sampel'"):
        main([*command, "--tags", str(tags), "--sampel", "3"])
    shutil.move(tmp_path / "archive", tmp_path / "moved")
    with pytest.raises(MnerqgError, match="does not exist"):
        main([*command, "--tags", str(tags)])
    with pytest.raises(MnerqgError, match=r"--valid is 1"):
        main(["import", "--format", "coco", "--input", "f", "--output", "d", "--valid", "1"])


def test_over_s3(tmp_path: Path, s3_bucket: str) -> None:
    tags = write_run(tmp_path, posts(10))
    main(["export", "--format", "label-studio", "--tags", str(tags), "--output", f"{s3_bucket}/out"])
    tasks = json.loads(storage.read_text(f"{s3_bucket}/out/tasks.json"))
    corrected = [annotate(task, dict.copy) for task in tasks]
    storage.write_text(f"{s3_bucket}/out/corrected.json", json.dumps(corrected))
    options = ["--input", f"{s3_bucket}/out/corrected.json", "--output", f"{s3_bucket}/dataset"]
    options += ["--pictures.roots", f"[{tmp_path / 'archive'}]", "--valid", "0"]
    main(["import", "--format", "label-studio", *options])
    assert count_posts(f"{s3_bucket}/dataset", "train") >= 10
