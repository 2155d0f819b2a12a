import json
import os
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mnerqg.datasets import twitter
from mnerqg.datasets.twitter import SplitSummary, import_dataset, match_key, parse_conll, read_split
from mnerqg.errors import DataError
from mnerqg.schema import TRAINING_SCHEMA, Box, Post, Span
from tests.builders import jpeg

SHARED = Path(os.environ.get("MNERQG_SHARED", Path(__file__).resolve().parents[2].parent / "shared"))


def voc(
    objects: list[tuple[str, tuple[float, float, float, float]]], size: tuple[int, int] = (40, 30)
) -> str:
    boxes = "".join(
        f"<object><name>{name}</name><bndbox><xmin>{a}</xmin><ymin>{b}</ymin><xmax>{c}</xmax><ymax>{d}</ymax>"
        "</bndbox></object>\n"
        for name, (a, b, c, d) in objects
    )
    return (
        f"<annotation><size><width>{size[0]}</width><height>{size[1]}</height></size>\n{boxes}</annotation>\n"
    )


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A release with one train post that has a picture and no XML."""
    release = tmp_path / "release"
    (release / "t_images").mkdir(parents=True)
    (release / "xml").mkdir()
    (release / "train.txt").write_text("IMGID:1\nAda\tB-PER\nLovelace\tI-PER\nin\tO\nLondon\tB-LOC\n")
    (release / "t_images" / "1.jpg").write_bytes(jpeg())
    return release


def read_one(root: Path) -> tuple[Post, SplitSummary]:
    summary = SplitSummary()
    (post,) = read_split(root, "train", summary)
    return post, summary


def parse(tmp_path: Path, content: str | bytes) -> tuple[list[twitter.TextPost], SplitSummary]:
    path = tmp_path / "train.txt"
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    summary = SplitSummary()
    return parse_conll(path, summary), summary


# ---- text -----------------------------------------------------------------------------------------------


def test_entities_are_code_points_of_the_joined_text(tmp_path: Path) -> None:
    (post,), summary = parse(
        tmp_path, "IMGID:O_3416\n👏🏽\tO\nJosé\tB-PER\nDíaz\tI-PER\nwon\tO\nEMMY\tB-MISC\n"
    )
    assert (post.post_id, post.text) == ("O_3416", "👏🏽 José Díaz won EMMY")
    assert [(post.text[e.start : e.end], e.type) for e in post.entities] == [
        ("José Díaz", "PER"),
        ("EMMY", "OTHER"),
    ]
    assert summary.entities == {"PER": 1, "LOC": 0, "ORG": 0, "OTHER": 1}


def test_a_stray_i_begins_an_entity(tmp_path: Path) -> None:
    (post,), summary = parse(tmp_path, "IMGID:1\na\tI-PER\nb\tI-PER\nc\tI-LOC\nd\tO\ne\tI-LOC\nf\tB-LOC\n")
    assert post.entities == (Span(0, 3, "PER"), Span(4, 5, "LOC"), Span(8, 9, "LOC"), Span(10, 11, "LOC"))
    assert (summary.stray_i, summary.type_changing_i) == (2, 1)


def test_misc_and_other_are_one_type(tmp_path: Path) -> None:
    (post,), _ = parse(tmp_path, "IMGID:1\na\tB-MISC\nb\tI-OTHER\n")
    assert post.entities == (Span(0, 3, "OTHER"),)


@pytest.mark.parametrize(
    "token", ["\xa0", "\ufe0f", "New York", " ", "\u2028", "\x85", "\x0c", "a\0b", "مرحبا"]
)
def test_an_odd_token_is_kept_as_it_is(tmp_path: Path, token: str) -> None:
    (post,), _ = parse(tmp_path, f"IMGID:1\nx\tO\n{token}\tB-ORG\ny\tO\n")
    assert post.text == f"x {token} y"
    assert post.text[post.entities[0].start : post.entities[0].end] == token


def test_crlf_bom_and_blank_lines(tmp_path: Path) -> None:
    posts, _ = parse(tmp_path, b"\xef\xbb\xbf\r\nIMGID:1\r\n\r\na\tB-PER\r\n  \r\n\r\nIMGID:2\r\nb\tO\r\n")
    assert [(post.post_id, post.text, post.entities) for post in posts] == [
        ("1", "a", (Span(0, 1, "PER"),)),
        ("2", "b", ()),
    ]


def test_posts_without_a_blank_line_between(tmp_path: Path) -> None:
    posts, _ = parse(tmp_path, "IMGID:1\na\tB-PER\nIMGID:16_05_01_1005\nb\tI-PER")
    assert [post.post_id for post in posts] == ["1", "16_05_01_1005"]
    assert posts[1].entities == (Span(0, 1, "PER"),)


def test_posts_that_share_a_picture_have_ids_of_their_own(tmp_path: Path) -> None:
    posts, summary = parse(tmp_path, "IMGID:7\na\tO\n\nIMGID:8\nb\tO\n\nIMGID:7\nc\tO\n\nIMGID:7\nd\tO\n")
    assert [(post.post_id, post.image_id) for post in posts] == [
        ("7", "7"),
        ("8", "8"),
        ("7#2", "7"),
        ("7#3", "7"),
    ]
    assert summary.shared_pictures == 2


@pytest.mark.parametrize(
    ("content", "line", "value"),
    [
        ("IMGID:1\na\tO\nb O\n", 3, "'b O'"),
        ("IMGID:1\na\tO\tx\n", 2, "'a\\tO\\tx'"),
        ("IMGID:1\na\tB-FOO\n", 2, "'B-FOO'"),
        ("IMGID:1\na\tb-per\n", 2, "'b-per'"),
        ("IMGID:1\na\t\n", 2, "''"),
        ("IMGID:1\na\tO\n\tO\n", 3, "'\\tO'"),
        ("a\tO\n", 1, "'a\\tO'"),
        ("IMGID:1\na\tO\n\nb\tO\n", 4, "'b\\tO'"),
        ("IMGID:1\nIMGID:2\na\tO\n", 1, "IMGID:1"),
        ("IMGID:2\na\tO\n\nIMGID:3\n\n", 4, "IMGID:3"),
        ("IMGID:\na\tO\n", 1, "'IMGID:'"),
        ("IMGID:../1\na\tO\n", 1, "'IMGID:../1'"),
        (b"IMGID:1\na\tO\nb\xff\tO\n", 3, "0xff"),
    ],
)
def test_bad_text_names_file_line_and_value(
    tmp_path: Path, content: str | bytes, line: int, value: str
) -> None:
    with pytest.raises(DataError) as caught:
        parse(tmp_path, content)
    message = str(caught.value)
    assert message.startswith(f"{tmp_path / 'train.txt'}:{line}: ")
    assert value in message
    assert "\n" not in message


@pytest.mark.parametrize("content", ["", "\n\n"])
def test_a_file_without_posts_is_refused(tmp_path: Path, content: str) -> None:
    with pytest.raises(DataError, match="holds no post"):
        parse(tmp_path, content)


TOKENS = st.text(st.characters(codec="utf-8", exclude_characters="\t\n\r"), min_size=1, max_size=6)
WORDS = st.lists(
    st.tuples(
        TOKENS.filter(lambda token: not token.startswith("IMGID:")),
        st.sampled_from(["O", *(f"{prefix}-{name}" for prefix in "BI" for name in (*twitter.TYPES, "MISC"))]),
    ),
    min_size=1,
    max_size=12,
)


def slow_entities(words: list[tuple[str, str]]) -> list[tuple[str, str]]:
    """Surfaces and types by cutting the list of words, without any offsets."""
    types = [tag[2:].replace("MISC", "OTHER") for _, tag in words]
    begins = [
        tag[0] == "B" or (tag[0] == "I" and (index == 0 or types[index - 1] != types[index]))
        for index, (_, tag) in enumerate(words)
    ]
    found = []
    for first in (index for index, begin in enumerate(begins) if begin):
        last = first + 1
        while last < len(words) and words[last][1] != "O" and not begins[last]:
            last += 1
        found.append((" ".join(token for token, _ in words[first:last]), types[first]))
    return found


@settings(deadline=None)
@given(st.lists(WORDS, min_size=1, max_size=3))
def test_spans_agree_with_the_words(
    tmp_path_factory: pytest.TempPathFactory, blocks: list[list[tuple[str, str]]]
) -> None:
    content = "\n".join(
        f"IMGID:{number}\n" + "".join(f"{token}\t{tag}\n" for token, tag in words)
        for number, words in enumerate(blocks)
    )
    posts, summary = parse(tmp_path_factory.getbasetemp(), content)
    expected = [slow_entities(words) for words in blocks]
    found = [[(post.text[e.start : e.end], e.type) for e in post.entities] for post in posts]
    assert found == expected
    assert [post.text for post in posts] == [" ".join(token for token, _ in words) for words in blocks]
    assert sum(summary.entities.values()) == sum(map(len, expected))


# ---- boxes ----------------------------------------------------------------------------------------------


def test_a_box_takes_the_type_of_the_entity_it_names(root: Path) -> None:
    (root / "xml" / "1.xml").write_text(voc([("ADA  lovelace!", (3, 4, 20, 25)), ("Paris", (0, 0, 9, 9))]))
    post, summary = read_one(root)
    assert post.boxes == (Box("PER", 3, 4, 20, 25),)
    assert post.boxes_annotated
    assert summary.boxes == {"PER": 1, "LOC": 0, "ORG": 0, "OTHER": 0}
    assert (summary.boxes_joined, summary.boxes_unmatched, summary.unmatched_names) == (
        1,
        1,
        ["1.xml:3: Paris"],
    )


def test_a_picture_without_xml_is_not_annotated(root: Path) -> None:
    post, summary = read_one(root)
    assert (post.boxes, post.boxes_annotated, summary.posts_annotated) == ((), False, 0)


def test_an_xml_without_objects_is_an_annotation(root: Path) -> None:
    (root / "xml" / "1.xml").write_text(voc([]))
    assert read_one(root)[0].boxes_annotated


def test_boxes_outside_are_clipped_or_dropped(root: Path) -> None:
    boxes = [(-5, -5, 10, 10), (30, 20, 60, 31), (40, 0, 50, 9), (5, 9, 5, 20), (9, 9, 3, 3)]
    (root / "xml" / "1.xml").write_text(voc([("London", box) for box in boxes]))
    post, summary = read_one(root)
    assert [box.xyxy_px for box in post.boxes] == [(0, 0, 10, 10), (30, 20, 40, 30)]
    assert (summary.boxes_joined, summary.boxes_clipped, summary.boxes_dropped) == (2, 2, 3)
    assert summary.dropped_boxes == [
        "1.xml:4: outside the picture of 40 x 30 pixels: 40, 0, 50, 9",
        "1.xml:5: empty: xmin and xmax are both 5",
        "1.xml:6: inverted: xmin 9 is above xmax 3",
    ]


def test_a_dropped_box_of_a_shared_picture_is_named_once(root: Path) -> None:
    (root / "train.txt").write_text("IMGID:1\nAda\tB-PER\n\nIMGID:1\nAda\tB-PER\n")
    (root / "xml" / "1.xml").write_text(voc([("Ada", (9, 9, 3, 3))]))
    summary = SplitSummary()
    assert [post.boxes for post in read_split(root, "train", summary)] == [(), ()]
    assert summary.boxes_dropped == 2
    assert summary.dropped_boxes == ["1.xml:2: inverted: xmin 9 is above xmax 3"]


def test_the_decoded_upright_picture_says_the_size(root: Path) -> None:
    (root / "t_images" / "1.jpg").write_bytes(jpeg(40, 30, orientation=6))
    (root / "xml" / "1.xml").write_text(voc([("London", (10, 10, 39, 39))]))
    post, summary = read_one(root)
    assert post.boxes[0].xyxy_px == (10, 10, 30, 39)
    assert summary.size_mismatch == 1


def test_without_a_picture_the_xml_says_the_size(root: Path) -> None:
    (root / "t_images" / "1.jpg").unlink()
    (root / "xml" / "1.xml").write_text(voc([("London", (10, 10, 99, 29))]))
    post, summary = read_one(root)
    assert (post.image, post.boxes[0].xyxy_px) == (None, (10, 10, 40, 29))
    assert (summary.pictures_missing, summary.size_mismatch) == (1, 0)


def test_a_name_of_two_types_takes_the_first_in_the_text(root: Path) -> None:
    (root / "train.txt").write_text("IMGID:1\nParis\tB-PER\nin\tO\nPARIS\tB-LOC\n")
    (root / "xml" / "1.xml").write_text(voc([("Paris", (1, 1, 9, 9))]))
    post, summary = read_one(root)
    assert (post.boxes[0].type, summary.boxes_ambiguous) == ("PER", 1)


def test_a_name_without_letters_matches_nothing(root: Path) -> None:
    (root / "train.txt").write_text("IMGID:1\n🐼\tB-OTHER\n")
    (root / "xml" / "1.xml").write_text(voc([("🦁", (1, 1, 9, 9))]))
    assert read_one(root)[1].unmatched_names == ["1.xml:2: 🦁"]


def test_a_shared_picture_reports_a_name_only_if_no_post_bears_it(root: Path) -> None:
    (root / "train.txt").write_text("IMGID:1\nAda\tB-PER\n\nIMGID:1\nLondon\tB-LOC\n")
    boxes = [("Ada", (1, 1, 9, 9)), ("London", (2, 2, 8, 8)), ("Nobody", (3, 3, 7, 7))]
    (root / "xml" / "1.xml").write_text(voc(boxes))
    summary = SplitSummary()
    first, second = read_split(root, "train", summary)
    assert [box.type for box in first.boxes] == ["PER"]
    assert [box.type for box in second.boxes] == ["LOC"]
    assert summary.unmatched_names == ["1.xml:4: Nobody"]


def test_an_object_without_a_box_is_counted(root: Path) -> None:
    (root / "xml" / "1.xml").write_text("<annotation><object><name>London</name></object></annotation>")
    post, summary = read_one(root)
    assert (post.boxes, summary.objects_without_box) == ((), 1)


def test_broken_xml_is_one_line(root: Path) -> None:
    (root / "xml" / "1.xml").write_text(voc([("London", (1, 1, float("nan"), 2))]))
    with pytest.raises(DataError) as caught:
        read_one(root)
    assert str(caught.value) == (
        f"{root / 'xml' / '1.xml'}:2: object 1 has xmax 'nan'; write a number of pixels"
    )


@given(st.text(max_size=20))
def test_match_key_keeps_letters_and_digits_only(name: str) -> None:
    key = match_key(name)
    assert key == "" or key.isalnum()
    assert match_key(f" {name} . ' ") == key


# ---- pictures -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("data", [b"", b"<html>404</html>", jpeg()[:200], b"\xff\xd8\xff"])
def test_an_unreadable_picture_keeps_the_post(root: Path, data: bytes) -> None:
    (root / "t_images" / "1.jpg").write_bytes(data)
    post, summary = read_one(root)
    assert (post.post_id, post.image, len(post.entities)) == ("1", None, 2)
    assert (summary.pictures_found, summary.pictures_unreadable) == (0, 1)
    assert summary.picture_problems[0].startswith("1.jpg: ")


def test_no_directory_of_pictures_is_an_error(root: Path) -> None:
    (root / "t_images" / "1.jpg").unlink()
    (root / "t_images").rmdir()
    with pytest.raises(DataError, match="_images"):
        read_split(root, "train")


# ---- the whole import -----------------------------------------------------------------------------------


def test_import_writes_shards_and_summary(root: Path, tmp_path: Path) -> None:
    blocks = [f"IMGID:{number}\nAda\tB-PER\n" for number in range(7)]
    (root / "valid.txt").write_text("\n".join(blocks))
    (root / "xml" / "1.xml").write_text(voc([("Ada Lovelace", (3, 4, 20, 25))]))
    output = tmp_path / "out"
    summary = import_dataset(root, str(output), rows_per_file=3)
    assert sorted(path.relative_to(output).as_posix() for path in output.rglob("*.*")) == [
        "summary.json",
        "train/part-00000.parquet",
        "valid/part-00000.parquet",
        "valid/part-00001.parquet",
        "valid/part-00002.parquet",
    ]
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []
    table = pq.read_table(output / "train" / "part-00000.parquet")
    assert table.schema == TRAINING_SCHEMA
    assert table.to_pylist() == [
        {
            "post_id": "1",
            "text": "Ada Lovelace in London",
            "image": jpeg(),
            "entities": [{"start": 0, "end": 12, "type": "PER"}, {"start": 16, "end": 22, "type": "LOC"}],
            "boxes": [
                {
                    "type": "PER",
                    "x_min": 3,
                    "y_min": 4,
                    "x_max": 20,
                    "y_max": 25,
                    "source": "manual",
                    "score": 1,
                }
            ],
            "boxes_annotated": True,
            "phrases": [],
        }
    ]
    assert pq.read_table(output / "valid" / "part-00002.parquet").num_rows == 1
    stored = json.loads((output / "summary.json").read_text())
    assert stored == json.loads(json.dumps(summary.to_dict()))
    assert stored["absent_splits"] == ["test"]
    assert stored["splits"]["valid"]["pictures_missing"] == 6


def test_xml_files_of_no_post_are_named_unread(root: Path, tmp_path: Path) -> None:
    (root / "valid.txt").write_text("IMGID:2\na\tO\n")
    for name, content in (
        ("1.xml", voc([])),
        ("2.xml", voc([])),
        ("1.XML", ""),
        ("3.xml", "<broken"),
        ("4.md", ""),
    ):
        (root / "xml" / name).write_text(content)
    import_dataset(root, str(tmp_path / "out"))
    stored = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert (stored["xml_without_post"], stored["xml_without_post_names"]) == (2, ["1.XML", "3.xml"])
    import_dataset(root, str(tmp_path / "out"), splits=["valid", "train"], overwrite=True)
    assert json.loads((tmp_path / "out" / "summary.json").read_text()) == stored


def test_without_all_splits_no_xml_is_known_to_be_of_no_post(root: Path, tmp_path: Path) -> None:
    (root / "valid.txt").write_text("IMGID:2\na\tO\n")
    (root / "xml" / "2.xml").write_text(voc([]))
    summary = import_dataset(root, str(tmp_path / "out"), splits=["train"])
    assert (summary.xml_without_post, summary.xml_without_post_names) == (None, [])


@pytest.mark.parametrize(
    ("name", "content"),
    [("valid.txt", "IMGID:1\nx y z\n"), ("xml/1.xml", "<annotation>"), ("test.txt", "IMGID:1\na\tB-X\n")],
)
def test_nothing_is_written_where_the_release_is_bad(
    root: Path, tmp_path: Path, name: str, content: str
) -> None:
    (root / name).write_text(content)
    with pytest.raises(DataError, match=name.replace("/", ".")):
        import_dataset(root, str(tmp_path / "out"))
    assert [path.name for path in tmp_path.iterdir()] == ["release"]


def test_overwriting_has_to_be_asked_for(root: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    (root / "valid.txt").write_text("IMGID:1\na\tO\n")
    import_dataset(root, str(output))
    with pytest.raises(DataError, match="--overwrite"):
        import_dataset(root, str(output))
    import_dataset(root, str(output), splits=["train"], overwrite=True)
    assert not (output / "valid").exists()


def test_splits_that_are_named_must_exist(root: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"valid\.txt: missing"):
        import_dataset(root, str(tmp_path / "out"), splits=["train", "valid"])
    with pytest.raises(DataError, match="'dev' is no split"):
        import_dataset(root, str(tmp_path / "out"), splits=["dev"])
    (root / "train.txt").unlink()
    with pytest.raises(DataError, match=r"none of train\.txt"):
        import_dataset(root, str(tmp_path / "out"))
    with pytest.raises(DataError, match="no such directory"):
        import_dataset(root / "nowhere", str(tmp_path / "out"))


# ---- the real data --------------------------------------------------------------------------------------


@pytest.mark.skipif(not (SHARED / "data" / "twitter2015").is_dir(), reason=f"no Twitter2015 under {SHARED}")
@pytest.mark.parametrize(
    ("split", "posts", "entities", "stray_i", "boxes", "unmatched"),
    [
        ("train", 4000, {"PER": 2285, "LOC": 2135, "ORG": 957, "OTHER": 975}, 175, 1999, 203),
        ("valid", 1000, {"PER": 567, "LOC": 543, "ORG": 251, "OTHER": 233}, 52, 534, 70),
    ],
)
def test_the_facts_of_twitter2015(
    split: str, posts: int, entities: dict[str, int], stray_i: int, boxes: int, unmatched: int
) -> None:
    summary = SplitSummary()
    ids = [post.post_id for post in read_split(SHARED / "data" / "twitter2015", split, summary)]
    assert len(set(ids)) == summary.posts == summary.pictures_found == posts
    assert summary.entities == entities
    assert summary.stray_i == stray_i
    assert (summary.boxes_joined, summary.boxes_unmatched) == (boxes, unmatched)
    assert len(summary.unmatched_names) == unmatched
