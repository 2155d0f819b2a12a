from dataclasses import replace

import pytest

from mnerqg.config import DecodeConfig
from mnerqg.inputs.text import EncodedText
from mnerqg.inputs.windows import merge_windows
from mnerqg.model.decode import Decoder
from mnerqg.schema import Entity, Region, TaggedPost
from tests.builders import TYPES

TEXT = "".join(chr(97 + place % 26) for place in range(40))


def window(start: int, end: int) -> EncodedText:
    """A piece a code point, each a word; the first piece is a blank one."""
    places = [start, *range(start, end)]
    ends = [start, *range(start + 1, end + 1)]
    yes = [True] * len(places)
    read = end if end < len(TEXT) else len(TEXT)
    return EncodedText(TEXT, [1] * len(places), places, ends, yes, yes, read, end < len(TEXT))


WINDOWS = [window(0, 20), window(14, 34), window(28, 40)]


def entity(start: int, end: int, score: float = 0.8, kind: str = "PER") -> Entity:
    return Entity(TEXT[start:end], start, end, kind, score)


def merged(*found: list[Entity], overlap: str = "flat") -> list[tuple[int, int, str, float]]:
    resolve = Decoder(config=DecodeConfig(overlap=overlap), types=TYPES).resolve
    answers = [TaggedPost(entities=tuple(entities)) for entities in found]
    post = merge_windows(answers, WINDOWS, resolve)
    assert all(TEXT[one.start : one.end] == one.text for one in post.entities)
    return [(one.start, one.end, one.type, one.score) for one in post.entities]


def test_an_entity_of_two_windows_is_there_once_with_its_highest_score() -> None:
    assert merged([entity(15, 18, 0.6)], [entity(15, 18, 0.9), entity(20, 22)], []) == [
        (15, 18, "PER", 0.9),
        (20, 22, "PER", 0.8),
    ]


def test_an_entity_at_the_edge_is_left_to_the_window_that_sees_beyond_it() -> None:
    whole = entity(17, 23, 0.6)
    assert merged([entity(17, 20, 0.9)], [whole], []) == [(17, 23, "PER", 0.6)]
    # The neighbour has all of it, and says no.
    assert merged([entity(17, 20, 0.9)], [], []) == []
    assert merged([], [entity(14, 16, 0.9)], []) == []
    # No neighbour has all of it.
    assert merged([entity(12, 20)], [], []) == [(12, 20, "PER", 0.8)]
    assert merged([], [entity(14, 22)], []) == [(14, 22, "PER", 0.8)]
    assert merged([entity(14, 20)], [entity(14, 20)], []) == [(14, 20, "PER", 0.8)]
    # The text's own ends are no edges.
    assert merged([entity(0, 2)], [], [entity(38, 40)]) == [(0, 2, "PER", 0.8), (38, 40, "PER", 0.8)]


@pytest.mark.parametrize(("overlap", "count"), [("flat", 1), ("across_types", 2)])
def test_what_overlaps_is_resolved_as_within_a_window(overlap: str, count: int) -> None:
    found = merged([entity(14, 18, 0.7)], [entity(16, 19, 0.9, "LOC")], [], overlap=overlap)
    assert len(found) == count
    assert (16, 19, "LOC", 0.9) in found
    assert merged([entity(14, 18, 0.7)], [entity(16, 19, 0.9)], [], overlap=overlap) == [(16, 19, "PER", 0.9)]


def test_regions_existence_and_what_is_read() -> None:
    def region(kind: str, score: float) -> Region:
        return Region(kind, 0, 0, 9, 9, score)

    first = TaggedPost(
        entities=(entity(2, 4),),
        regions=(region("PER", 0.7), region("PER", 0.6)),
        best_regions=(region("PER", 0.7), region("LOC", 0.3)),
        existence=(("PER", 0.9), ("LOC", 0.2)),
        image_width=9,
        image_height=9,
        image_status="ok",
        text_status="truncated",
        text_read=20,
    )
    second = replace(
        first,
        entities=(),
        regions=(region("PER", 0.6), region("LOC", 0.8)),
        best_regions=(region("PER", 0.6), region("LOC", 0.8)),
        existence=(("PER", 0.1), ("LOC", 0.5)),
        text_status="ok",
        text_read=40,
    )
    post = merge_windows([first, second], WINDOWS[:2], tuple)
    assert post == replace(
        second,
        entities=(replace(entity(2, 4), region=0),),
        regions=(region("PER", 0.7), region("PER", 0.6), region("LOC", 0.8)),
        best_regions=(region("PER", 0.7), region("LOC", 0.8)),
        existence=(("PER", 0.9), ("LOC", 0.5)),
    )
    assert merge_windows([first], WINDOWS[:1], tuple) is first
