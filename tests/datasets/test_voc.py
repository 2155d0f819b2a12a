from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mnerqg.datasets.voc import Corners, VocObject, clip, enclosing, fault, read_voc
from mnerqg.errors import DataError

BOX = "<bndbox><xmin>1</xmin><ymin>2</ymin><xmax>30.5</xmax><ymax>4</ymax></bndbox>"
XYXY = st.tuples(*[st.integers(-50, 150)] * 4)


def write(tmp_path: Path, content: str) -> Path:
    path = tmp_path / "1.xml"
    path.write_text(content)
    return path


def annotation(objects: str, size: str = "<size><width>40</width><height>30</height></size>") -> str:
    return f"<annotation>\n{size}\n{objects}\n</annotation>\n"


def test_objects_in_order_with_all_their_names(tmp_path: Path) -> None:
    content = annotation(
        f"<object><name> Ada\n Lovelace </name><name>12</name><difficult>0</difficult>{BOX}</object>\n"
        "<object><name>13</name><scene> 1 </scene><nobndbox/></object>\n<object/>"
    )
    voc = read_voc(write(tmp_path, content))
    assert (voc.path, voc.size) == (tmp_path / "1.xml", (40, 30))
    assert voc.objects == (
        VocObject(1, 3, ("Ada Lovelace", "12"), (1, 2, 30.5, 4), {"difficult": "0"}),
        VocObject(2, 5, ("13",), None, {"scene": "1", "nobndbox": ""}),
        VocObject(3, 6, (), None, {}),
    )
    assert [voc.place(item) for item in voc.objects] == ["1.xml:3", "1.xml:5", "1.xml:6"]


@pytest.mark.parametrize(
    "size",
    [
        "",
        "<size/>",
        "<size><width>40</width></size>",
        "<size><width>a</width><height>3</height></size>",
        "<size><width>0</width><height>3</height></size>",
        "<size><width>inf</width><height>3</height></size>",
    ],
)
def test_a_size_that_is_none(tmp_path: Path, size: str) -> None:
    assert read_voc(write(tmp_path, annotation("", size))).size is None


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("<annotation>\n<object>\n</annotation>", "1.xml:3: broken XML"),
        ("", "1.xml:1: broken XML"),
        ("<html></html>", "<html>"),
        ("<!DOCTYPE annotation><annotation/>", "plain XML"),
        ('<!DOCTYPE a [<!ENTITY e "x">]><annotation>&e;</annotation>', "plain XML"),
        ('<?xml version="1.0" encoding="klingon"?><annotation/>', "1.xml"),
        (
            annotation(f"<object/><object>{BOX.replace('30.5', 'nan')}</object>"),
            "1.xml:3: object 2 has xmax 'nan'",
        ),
        (
            annotation(f"<object>\n{BOX.replace('<ymax>4</ymax>', '')}</object>"),
            "1.xml:4: object 1 has ymax None",
        ),
        (
            annotation("<object>\n" + BOX.replace("<xmin>1", "\n<xmin>left") + "</object>"),
            "1.xml:5: object 1 has xmin 'left'",
        ),
        (annotation(f"<object>{BOX.replace('>1<', '><')}</object>"), "1.xml:3: object 1 has xmin ''"),
    ],
)
def test_broken_xml_is_one_line(tmp_path: Path, content: str, said: str) -> None:
    path = write(tmp_path, content)
    with pytest.raises(DataError) as caught:
        read_voc(path)
    assert str(path) in str(caught.value)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_all_objects_with_bad_corners_are_named(tmp_path: Path) -> None:
    bad = f"<object>{BOX.replace('>4<', '>low<')}</object>"
    with pytest.raises(DataError) as caught:
        read_voc(path := write(tmp_path, annotation(f"{bad}\n<object>{BOX}</object>\n{bad}")))
    assert str(caught.value) == (
        f"{path}:3: object 1 has ymax 'low'; write a number of pixels (and 1 more: 1.xml:5)"
    )


def test_a_missing_file_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"2\.xml: cannot be read"):
        read_voc(tmp_path / "2.xml")


@given(XYXY, st.integers(1, 100), st.integers(1, 100))
def test_clip_gives_the_pixels_that_both_have(xyxy_px: Corners, width: int, height: int) -> None:
    columns = set(range(int(xyxy_px[0]), int(xyxy_px[2]))) & set(range(width))
    rows = set(range(int(xyxy_px[1]), int(xyxy_px[3]))) & set(range(height))
    clipped = clip(xyxy_px, (width, height))
    if not columns or not rows:
        assert clipped is None
    else:
        assert clipped == (min(columns), min(rows), max(columns) + 1, max(rows) + 1)


def test_without_a_size_only_the_origin_bounds() -> None:
    assert clip((-3, 2, 9e9, 5), None) == (0, 2, 9e9, 5)


@pytest.mark.parametrize(
    ("xyxy_px", "size", "said"),
    [
        ((9, 1, 3.5, 4), (40, 30), "inverted: xmin 9 is above xmax 3.5"),
        ((1, 9, 4, 3), None, "inverted: ymin 9 is above ymax 3"),
        ((90, 90, 80, 95), (40, 30), "inverted: xmin 90 is above xmax 80"),
        ((5, 1, 5, 4), (40, 30), "empty: xmin and xmax are both 5"),
        ((1, 4, 5, 4), (40, 30), "empty: ymin and ymax are both 4"),
        ((40, 1, 50, 4), (40, 30), "outside the picture of 40 x 30 pixels: 40, 1, 50, 4"),
        ((-9, 1, 0, 4), None, "outside the picture: -9, 1, 0, 4"),
    ],
)
def test_what_is_wrong_with_a_box_of_which_nothing_is_left(
    xyxy_px: Corners, size: tuple[int, int] | None, said: str
) -> None:
    assert clip(xyxy_px, size) is None
    assert fault(xyxy_px, size) == said


@given(st.lists(XYXY, min_size=1, max_size=5))
def test_enclosing_touches_every_side(boxes: list[Corners]) -> None:
    around = enclosing(boxes)
    for box in boxes:
        assert around[0] <= box[0]
        assert around[1] <= box[1]
        assert around[2] >= box[2]
        assert around[3] >= box[3]
    assert all(any(box[side] == around[side] for box in boxes) for side in range(4))
