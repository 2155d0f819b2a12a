"""Captions of Flickr30K Entities: what is marked in them. What the import says of bad ones: test_flickr30k.py."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mnerqg.datasets.flickr30k_captions import Caption, Mention, parse_caption, read_captions
from mnerqg.errors import DataError


def parse(line: str) -> Caption:
    return parse_caption(Path("1.txt"), 1, line)


def test_a_caption_of_the_release() -> None:
    line = (
        "[/EN#283585/people A man] with [/EN#283587/bodyparts pierced ears] is wearing "
        "[/EN#283588/other glasses] and [/EN#283589/clothing an orange hat] ."
    )
    assert parse(line) == Caption(
        "A man with pierced ears is wearing glasses and an orange hat .",
        (
            Mention("283585", ("people",), "A man"),
            Mention("283587", ("bodyparts",), "pierced ears"),
            Mention("283588", ("other",), "glasses"),
            Mention("283589", ("clothing",), "an orange hat"),
        ),
    )


def test_several_types_and_odd_blanks() -> None:
    caption = parse("  [/EN#5/bodyparts/people a  man 's arm ] ,  [/EN#0/notvisual it]! ")
    assert caption.text == "a man 's arm , it!"
    assert caption.mentions == (
        Mention("5", ("bodyparts", "people"), "a man 's arm"),
        Mention("0", ("notvisual",), "it"),
    )
    assert [mention.not_visual for mention in caption.mentions] == [False, True]


def test_a_caption_without_phrases() -> None:
    assert parse("Nobody / nothing #1 .") == Caption("Nobody / nothing #1 .", ())


def test_line_ends_and_blank_lines(tmp_path: Path) -> None:
    (tmp_path / "1.txt").write_bytes(b"\xef\xbb\xbf[/EN#1/people A man] .\r\n\r\nA caf\xc3\xa9 .\r\n")
    assert [caption.text for caption in read_captions(tmp_path / "1.txt")] == ["A man .", "A café ."]


WORDS = st.text(
    st.characters(codec="utf-8", exclude_characters="[]", exclude_categories=("Z", "Cc")),
    min_size=1,
    max_size=6,
)
MENTIONS = st.builds(
    Mention,
    entity_id=st.integers(0, 10**6).map(str),
    types=st.lists(st.sampled_from(["people", "other", "notvisual", "scene"]), min_size=1, max_size=3).map(
        tuple
    ),
    words=st.lists(WORDS, min_size=1, max_size=4).map(" ".join),
)


@given(st.lists(WORDS | MENTIONS, max_size=10), st.sampled_from([" ", "  ", "\t"]))
def test_captions_round_trip(items: list[str | Mention], blank: str) -> None:
    line = blank.join(
        item
        if isinstance(item, str)
        else f"[/EN#{item.entity_id}/{'/'.join(item.types)}{blank}{item.words.replace(' ', blank)}]"
        for item in items
    )
    caption = parse(line)
    assert caption.mentions == tuple(item for item in items if isinstance(item, Mention))
    assert caption.text == " ".join(item if isinstance(item, str) else item.words for item in items)


@given(st.text("[]/EN#1a \n", max_size=30))
def test_any_line_is_read_or_refused(line: str) -> None:
    try:
        caption = parse(line)
    except DataError:
        with pytest.raises(DataError, match=r"^1\.txt:1: [^\n]+$"):
            parse(line)
    else:
        assert not set("[]") & set(caption.text)
        assert all(mention.words in caption.text for mention in caption.mentions)
