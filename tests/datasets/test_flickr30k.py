import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from mnerqg.datasets.flickr30k import EntityBox, SplitSummary, import_dataset, read_annotation, read_split
from mnerqg.datasets.prepared import read_posts
from mnerqg.errors import DataError
from mnerqg.schema import TRAINING_SCHEMA, Box, Phrase, Post
from tests.builders import jpeg

CAPTIONS = (
    "[/EN#283585/people A man] with [/EN#283587/bodyparts pierced ears] is wearing [/EN#283588/other glasses] .",
    "[/EN#283585/people The guy] looks at [/EN#0/notvisual it] in [/EN#283590/scene the street] .",
    "[/EN#283585/people A man] holds [/EN#283586/other/people a mug] .",
    "[/EN#283588/clothing glasses] on [/EN#283585/people the guy]",
    "[/EN#283585/people The guy] enjoys [/EN#283591/other the time] .",
)
BOXES = (
    (("283585",), (2, 3, 20, 25)),
    (("283587",), (4, 5, 6, 7)),
    (("283587",), (14, 4, 16, 8)),
    (("283588", "283586"), (3, 5, 17, 9)),
)
FLAGS = (("283590", "scene"), ("283591", "nobndbox"))


def xml(
    boxes: tuple[tuple[tuple[str, ...], tuple[int, int, int, int]], ...] = BOXES,
    flags: tuple[tuple[str, str], ...] = FLAGS,
) -> str:
    """An annotation as the release writes it; every flag is given, the one that is not set as 0."""
    objects = [
        "".join(f"\t\t<name>{name}</name>\n" for name in names)
        + f"\t\t<bndbox>\n\t\t\t<xmin>{a}</xmin>\n\t\t\t<ymin>{b}</ymin>\n"
        + f"\t\t\t<xmax>{c}</xmax>\n\t\t\t<ymax>{d}</ymax>\n\t\t</bndbox>\n"
        for names, (a, b, c, d) in boxes
    ]
    objects += [
        f"\t\t<name>{name}</name>\n"
        + "".join(f"\t\t<{tag}>{int(tag == flag)}</{tag}>\n" for tag in ("scene", "nobndbox"))
        for name, flag in flags
    ]
    return (
        "<annotation>\n\t<filename>1.jpg</filename>\n"
        "\t<size>\n\t\t<width>40</width>\n\t\t<height>30</height>\n\t\t<depth>3</depth>\n\t</size>\n"
        + "".join(f"\t<object>\n{item}\t</object>\n" for item in objects)
        + "</annotation>\n"
    )


def add_picture(root: Path, image_id: str) -> None:
    (root / "Sentences" / f"{image_id}.txt").write_text("\n".join(CAPTIONS) + "\n")
    (root / "Annotations" / f"{image_id}.xml").write_text(xml())
    (root / "flickr30k-images" / f"{image_id}.jpg").write_bytes(jpeg())


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A release of one training picture."""
    release = tmp_path / "release"
    for name in ("Sentences", "Annotations", "flickr30k-images"):
        (release / name).mkdir(parents=True)
    add_picture(release, "1")
    (release / "train.txt").write_text("1\n")
    return release


def read_one(root: Path) -> tuple[Post, SplitSummary]:
    summary = SplitSummary()
    (post,) = read_split(root, "train", summary)
    return post, summary


def refused(root: Path) -> str:
    """The line with which the import of a release is refused; nothing is written."""
    with pytest.raises(DataError) as caught:
        import_dataset(root, str(root.parent / "out"))
    assert [path.name for path in root.parent.iterdir()] == ["release"]
    assert "\n" not in str(caught.value)
    return str(caught.value)


# ---- captions -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("[/EN#1/people A man", "'[/EN#1/people A man' has a [ that is not closed; write ] after the phrase"),
        (
            "[/EN#1/people A [/EN#2/other hat]]",
            "'[/EN#1/people A [/EN#2/other hat' has a [ that is not closed",
        ),
        ("A man] walks", "'A man]' has a ] that closes nothing; remove it or open the phrase"),
        ("[/EN#1/people A man]] .", "']"),
        ("a [sic] man", "'[sic]' is no phrase; write [/EN#<entity id>/<type> <words>] or no brackets"),
        ("[]", "'[]' is no phrase"),
        ("[ /EN#1/people A man]", "'[ /EN#1/people A man]' is no phrase"),
        ("[/EN/people A man]", "'[/EN/people A man]' is no phrase"),
        ("[/EN#/people A man]", "has the entity id ''; write its number after /EN#"),
        ("[/EN# 1/people A man]", "has the entity id ''"),
        ("[/EN#x1/people A man]", "has the entity id 'x1'"),
        ("[/EN#1 A man]", "'[/EN#1 A man]' lacks a type; write /<type> after the entity id"),
        ("[/EN#1/ A man]", "lacks a type"),
        ("[/EN#1/people/ A man]", "lacks a type"),
        ("[/EN#1/people]", "'[/EN#1/people]' has no words; write them after the type or remove the phrase"),
        ("[/EN#1/people ]", "has no words"),
    ],
)
def test_a_bad_caption_names_file_line_and_value(root: Path, line: str, said: str) -> None:
    path = root / "Sentences" / "1.txt"
    path.write_text("\n".join([*CAPTIONS[:2], "", line, CAPTIONS[3]]))
    message = refused(root)
    assert message.startswith(f"{path}:4: ")
    assert said in message


def test_a_long_caption_is_cut_in_the_message(root: Path) -> None:
    (root / "Sentences" / "1.txt").write_text("[/EN#1/people " + "man " * 1000)
    assert len(refused(root)) < 300


def test_a_file_without_captions_is_refused(root: Path) -> None:
    path = root / "Sentences" / "1.txt"
    path.write_text("\n \n")
    assert refused(root).startswith(f"{path}: holds no caption")


def test_bad_captions_and_objects_of_all_splits_are_told_at_once(root: Path) -> None:
    for image_id in ("2", "3"):
        add_picture(root, image_id)
    (root / "train.txt").write_text("1\n3\n")
    (root / "val.txt").write_text("2\n4\n")
    (root / "test.txt").write_text("2\n../1\n")
    (root / "Sentences" / "1.txt").write_text("[/EN#1 A man] .\nfine .\n[sic]\n")
    (root / "Annotations" / "1.xml").write_text(
        xml().replace("<xmin>4<", "<xmin>left<").replace("<ymax>9<", "<ymax>nan<")
    )
    (root / "Annotations" / "2.xml").write_text(
        xml().replace("<name>283587<", "<name>x<").replace("<scene>1<", "<scene>2<")
    )
    assert refused(root) == (
        f"{root / 'Sentences' / '1.txt'}:1: '[/EN#1 A man]' lacks a type; write /<type> after the entity id "
        "(and 9 more: 1.txt:3, 1.xml:20, 1.xml:42, 2.xml:17, 2.xml:26, 2.xml:45, val.txt:2, test.txt:1, test.txt:2)"
    )


def test_captions_that_are_not_utf8(root: Path) -> None:
    path = root / "Sentences" / "1.txt"
    path.write_bytes(b"fine\n\xff\n")
    assert refused(root).startswith(f"{path}:2: byte 0xff is not UTF-8")


# ---- boxes ----------------------------------------------------------------------------------------------


def test_objects_of_the_release(tmp_path: Path) -> None:
    (tmp_path / "1.xml").write_text(xml())
    annotation = read_annotation(tmp_path / "1.xml")
    assert annotation.size == (40, 30)
    assert annotation.boxes == tuple(
        EntityBox(entity_ids, xyxy_px, f"1.xml:{line}")
        for (entity_ids, xyxy_px), line in zip(BOXES, (8, 17, 26, 35), strict=True)
    )
    assert annotation.scene == {"283590"}
    assert annotation.no_box == {"283591"}


@pytest.mark.parametrize("tag", ["nobox", "nobndbox"])
def test_either_name_of_the_flag(tmp_path: Path, tag: str) -> None:
    content = f"<annotation><object><name>5</name><name>6</name><{tag}>1</{tag}></object></annotation>"
    (tmp_path / "1.xml").write_text(content)
    assert read_annotation(tmp_path / "1.xml").no_box == {"5", "6"}


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("</annotation>", "", "1.xml:56: broken XML"),
        ("<ymax>25</ymax>", "", "1.xml:10: object 1 has ymax None; write a number of pixels"),
        ("<xmin>4<", "<xmin>left<", "1.xml:20: object 2 has xmin 'left'; write a number of pixels"),
        ("<xmin>4<", "<xmin>nan<", "1.xml:20: object 2 has xmin 'nan'"),
        ("<name>283587</name>", "", "1.xml:17: object 2 has the name ''; write an entity's id"),
        ("<name>283586<", "<name>mug<", "1.xml:35: object 4 has the name 'mug'; write an entity's id"),
        (
            "<scene>1</scene>",
            "<scene>0</scene>",
            "1.xml:45: object 5 (283590) has no bndbox; "
            "write one, or <scene>1</scene>, or <nobndbox>1</nobndbox>",
        ),
        ("<scene>1</scene>", "<scene>yes</scene>", "1.xml:45: object 5 has scene 'yes'; write 0 or 1"),
        ("<annotation>", "<html>", "1.xml:55: broken XML"),
    ],
)
def test_a_bad_xml_names_file_line_object_and_value(root: Path, old: str, new: str, said: str) -> None:
    path = root / "Annotations" / "1.xml"
    path.write_text(xml().replace(old, new, 1))
    message = refused(root)
    assert str(path) in message
    assert said in message


def test_xml_with_a_dtd_is_not_read(root: Path) -> None:
    path = root / "Annotations" / "1.xml"
    path.write_text('<!DOCTYPE a [<!ENTITY e "x">]>' + xml())
    assert refused(root).startswith(f"{path}: cannot be read as plain XML")


# ---- posts ----------------------------------------------------------------------------------------------


def test_a_picture_is_a_post_with_its_phrases(root: Path) -> None:
    post, summary = read_one(root)
    assert post == Post(
        post_id="1",
        text=(
            "A man with pierced ears is wearing glasses .\nThe guy looks at it in the street .\n"
            "A man holds a mug .\nglasses on the guy\nThe guy enjoys the time ."
        ),
        image=jpeg(),
        boxes=(
            Box("283585", 2, 3, 20, 25),
            Box("283587", 4, 4, 16, 8),
            Box("283588", 3, 5, 17, 9),
            Box("283585#2", 2, 3, 20, 25),
            Box("283586", 3, 5, 17, 9),
            Box("283585#3", 2, 3, 20, 25),
        ),
        boxes_annotated=True,
        phrases=(
            Phrase("283585", "A man"),
            Phrase("283587", "pierced ears"),
            Phrase("283588", "glasses"),
            Phrase("283585#2", "The guy"),
            Phrase("283586", "a mug"),
            Phrase("283585#3", "the guy"),
        ),
    )
    assert summary.mentions == {
        "boxed": 9,
        "not_visual": 1,
        "scene": 1,
        "no_box": 1,
        "box_dropped": 0,
        "unknown": 0,
    }
    assert (summary.posts, summary.captions, summary.phrases, summary.posts_without_phrases) == (1, 5, 6, 0)
    assert (summary.boxes, summary.entities_merged, summary.boxes_merged) == (4, 1, 2)


def test_every_phrase_has_one_box_of_its_id(root: Path) -> None:
    post, _ = read_one(root)
    assert [box.type for box in post.boxes] == [phrase.id for phrase in post.phrases]
    assert len({phrase.id for phrase in post.phrases}) == len(post.phrases)


def test_an_entity_that_the_xml_lacks_is_named(root: Path) -> None:
    (root / "Annotations" / "1.xml").write_text(xml(BOXES[:1]))
    post, summary = read_one(root)
    assert [phrase.id for phrase in post.phrases] == ["283585", "283585#2", "283585#3"]
    assert summary.mentions["unknown"] == 4
    assert summary.unknown_entities == [
        "1.xml: 283587 'pierced ears'",
        "1.xml: 283588 'glasses'",
        "1.xml: 283586 'a mug'",
    ]


def test_only_an_id_of_0_and_the_type_make_a_phrase_invisible(root: Path) -> None:
    (root / "Sentences" / "1.txt").write_text(
        "[/EN#283585/notvisual He] in [/EN#0/other it] and [/EN#0/notvisual it]"
    )
    post, summary = read_one(root)
    assert post.phrases == (Phrase("283585", "He"),)
    assert (summary.mentions["not_visual"], summary.unknown_entities) == (1, ["1.xml: 0 'it'"])


def test_a_picture_in_which_nothing_has_a_box(root: Path) -> None:
    (root / "Sentences" / "1.txt").write_text("Nobody looks at [/EN#0/notvisual it] .\n")
    post, summary = read_one(root)
    assert (post.phrases, post.boxes, post.boxes_annotated) == ((), (), False)
    assert (summary.posts_without_phrases, summary.unknown_entities) == (1, [])


def test_a_box_counts_before_a_flag(root: Path) -> None:
    (root / "Annotations" / "1.xml").write_text(
        xml(BOXES, (*FLAGS, ("283585", "scene"), ("283590", "nobndbox")))
    )
    _, summary = read_one(root)
    assert (summary.mentions["boxed"], summary.mentions["scene"]) == (9, 1)


def test_boxes_outside_are_clipped_or_dropped(root: Path) -> None:
    boxes = (
        (("283585",), (-5, -5, 10, 10)),
        (("283585",), (40, 0, 50, 9)),
        (("283587",), (30, 20, 60, 31)),
        (("283588", "283586"), (41, 9, 60, 20)),
        (("283586",), (5, 9, 5, 20)),
        (("283587",), (9, 9, 3, 3)),
    )
    (root / "Annotations" / "1.xml").write_text(xml(boxes))
    post, summary = read_one(root)
    assert {box.type: box.xyxy_px for box in post.boxes if "#" not in box.type} == {
        "283585": (0, 0, 10, 10),
        "283587": (30, 20, 40, 30),
    }
    assert (summary.boxes, summary.boxes_clipped, summary.boxes_dropped) == (6, 2, 4)
    assert summary.dropped_boxes == [
        "1.xml:17: outside the picture of 40 x 30 pixels: 40, 0, 50, 9",
        "1.xml:35: outside the picture of 40 x 30 pixels: 41, 9, 60, 20",
        "1.xml:45: empty: xmin and xmax are both 5",
        "1.xml:54: inverted: xmin 9 is above xmax 3",
    ]
    assert (summary.mentions["box_dropped"], summary.entities_merged, summary.unknown_entities) == (3, 0, [])
    assert sum(summary.mentions.values()) == 12


def test_the_decoded_upright_picture_says_the_size(root: Path) -> None:
    (root / "flickr30k-images" / "1.jpg").write_bytes(jpeg(40, 30, orientation=6))
    (root / "Annotations" / "1.xml").write_text(xml(((("283585",), (10, 10, 39, 39)),)))
    post, summary = read_one(root)
    assert post.boxes[0].xyxy_px == (10, 10, 30, 39)
    assert summary.size_mismatch == 1


# ---- pictures -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("folder", ["flickr30k_images", "images", "Flickr30k-images-2"])
def test_other_folders_of_pictures(root: Path, folder: str) -> None:
    (root / "flickr30k-images").rename(root / folder)
    assert read_one(root)[0].image == jpeg()


def test_no_folder_of_pictures_is_an_error(root: Path) -> None:
    (root / "flickr30k-images").rename(root / "pictures")
    assert refused(root).startswith(f"{root}: no directory *images*")


def test_a_missing_picture_keeps_the_row(root: Path) -> None:
    (root / "flickr30k-images" / "1.jpg").unlink()
    (root / "Annotations" / "1.xml").write_text(xml(((("283585",), (10, 10, 99, 29)),)))
    post, summary = read_one(root)
    assert (post.image, post.boxes[0].xyxy_px) == (None, (10, 10, 40, 29))
    assert (summary.pictures_missing, summary.size_mismatch) == (1, 0)
    assert summary.picture_problems == ["1: no such picture"]


@pytest.mark.parametrize("data", [b"", b"<html>404</html>", jpeg()[:200]])
def test_an_unreadable_picture_keeps_the_row(root: Path, data: bytes) -> None:
    (root / "flickr30k-images" / "1.jpg").write_bytes(data)
    post, summary = read_one(root)
    assert (post.image, len(post.phrases)) == (None, 6)
    assert (summary.pictures_found, summary.pictures_unreadable) == (0, 1)
    assert summary.picture_problems[0].startswith("1.jpg: ")


# ---- splits ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("1\n\n2\n", "3: '2' has no Sentences/2.txt; put the file there or remove the id"),
        ("3\n", "1: '3' has no Annotations/3.xml; put the file there or remove the id"),
        ("1\n1\n", "2: '1' stands in train.txt:1 already; remove one of the two"),
        ("1\n../1\n", "2: '../1' is no picture's id; use letters, digits, '_', '-' and '.'"),
        ("1 2\n", "1: '1 2' is no picture's id"),
        ("\n", " holds no id of a picture; write one a line"),
    ],
)
def test_a_bad_split_names_file_line_and_value(root: Path, content: str, said: str) -> None:
    (root / "Sentences" / "3.txt").write_text(CAPTIONS[0])
    (root / "train.txt").write_text(content)
    assert refused(root).startswith(f"{root / 'train.txt'}:{said}")


def test_a_picture_stands_in_one_split_only(root: Path) -> None:
    add_picture(root, "2")
    (root / "test.txt").write_text("2\n1\n")
    assert refused(root).startswith(f"{root / 'test.txt'}:2: '1' stands in train.txt:1 already")


def test_splits_that_are_named_must_exist(root: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"val\.txt: missing; .* 'valid' out of --splits"):
        import_dataset(root, str(tmp_path / "out"), splits=["train", "valid"])
    with pytest.raises(DataError, match="'val' is no split; choose from train, valid, test"):
        import_dataset(root, str(tmp_path / "out"), splits=["val"])
    (root / "train.txt").unlink()
    with pytest.raises(DataError, match=r"none of train\.txt, val\.txt, test\.txt"):
        import_dataset(root, str(tmp_path / "out"))


# ---- the whole import -----------------------------------------------------------------------------------


def test_import_writes_shards_and_summary(root: Path, tmp_path: Path) -> None:
    for image_id in ("2", "3", "4"):
        add_picture(root, image_id)
    (root / "val.txt").write_text("4\r\n2\r\n3\r\n")
    output = tmp_path / "out"
    summary = import_dataset(root, str(output), rows_per_file=2)
    assert sorted(path.relative_to(output).as_posix() for path in output.rglob("*.*")) == [
        "summary.json",
        "train/part-00000.parquet",
        "valid/part-00000.parquet",
        "valid/part-00001.parquet",
    ]
    assert pq.read_schema(output / "valid" / "part-00001.parquet") == TRAINING_SCHEMA
    stored = json.loads((output / "summary.json").read_text())
    assert stored == summary.to_dict()
    assert (stored["source"], stored["absent_splits"]) == ("flickr30k", ["test"])
    assert stored["splits"]["valid"]["mentions"]["boxed"] == 27


def test_what_is_written_reads_back_as_it_was(root: Path, tmp_path: Path) -> None:
    import_dataset(root, str(tmp_path / "out"))
    assert list(read_posts(str(tmp_path / "out"), "train")) == list(read_split(root, "train"))


def test_overwriting_has_to_be_asked_for(root: Path, tmp_path: Path) -> None:
    import_dataset(root, str(tmp_path / "out"))
    with pytest.raises(DataError, match="--overwrite"):
        import_dataset(root, str(tmp_path / "out"))
    import_dataset(root, str(tmp_path / "out"), overwrite=True)
