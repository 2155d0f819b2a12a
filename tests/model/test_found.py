from dataclasses import fields

import numpy as np
import pyarrow as pa
from hypothesis import given, settings
from hypothesis import strategies as st

from mnerqg.model.found import FOUND_TYPE, Found

POSTS = st.lists(
    st.fixed_dictionaries(
        {
            "is_known": st.booleans(),
            "spans": st.lists(
                st.tuples(st.integers(0, 3), st.integers(0, 90), st.integers(0, 90)), max_size=3
            ),
            "boxes": st.lists(st.integers(0, 3), max_size=5),
        }
    ),
    max_size=8,
)


def found_of(posts: list[dict[str, object]], queries: int = 4) -> Found:
    """Numbers that say which post they are of."""
    spans = [(p, *span) for p, post in enumerate(posts) for span in post["spans"]]  # type: ignore[attr-defined]
    boxes = [(p, k) for p, post in enumerate(posts) for k in post["boxes"]]  # type: ignore[attr-defined]
    existence = np.array([[p + k / 8 for k in range(queries)] for p in range(len(posts))], np.float32)
    existence = existence.reshape(len(posts), queries)
    existence[[not post["is_known"] for post in posts]] = np.nan
    return Found(
        existence=existence,
        spans=np.array(spans, np.int64).reshape(-1, 4),
        span_scores=np.array([span[0] + number / 64 for number, span in enumerate(spans)], np.float32),
        boxes=np.array(boxes, np.int64).reshape(-1, 2),
        boxes_canvas=np.arange(4 * len(boxes), dtype=np.float32).reshape(-1, 4),
        box_scores=np.array([box[0] for box in boxes], np.float32),
    )


def assert_equal(one: Found, other: Found) -> None:
    for entry in fields(Found):
        left, right = getattr(one, entry.name), getattr(other, entry.name)
        if entry.name == "existence" and not (one.existence > -1).any():
            assert len(left) == len(right)  # how many queries there were is not known where none was answered
            continue
        np.testing.assert_array_equal(left, right)


@settings(deadline=None)
@given(POSTS, st.data())
def test_found_as_arrow_and_back(posts: list[dict[str, object]], data: st.DataObject) -> None:
    """In any number of blocks, whatever rows they are cut into, with views that have an error."""
    found = found_of(posts)
    per_row: list[int] = []
    while sum(per_row) < len(posts):
        per_row.append(data.draw(st.integers(1, len(posts) - sum(per_row))))
    errors = [None if post["is_known"] else "raised" for post in posts]
    column = found.to_arrow(np.array(per_row, np.int64), errors)
    assert column.type == FOUND_TYPE
    counts, back, raised = Found.from_arrow(column)
    assert counts.tolist() == per_row
    assert raised == errors
    assert_equal(back, found)
    if per_row:
        first = data.draw(st.integers(0, len(per_row) - 1))
        table = pa.table({"found": column}).slice(first)  # a block is often part of another
        counts, part, raised = Found.from_arrow(table["found"].combine_chunks())
        before = sum(per_row[:first])
        assert (counts.tolist(), raised) == (per_row[first:], errors[before:])
        np.testing.assert_array_equal(part.spans[:, 1:], found.spans[found.spans[:, 0] >= before][:, 1:])
        np.testing.assert_array_equal(part.box_scores, found.box_scores[found.boxes[:, 0] >= before])


@settings(deadline=None)
@given(POSTS, st.data())
def test_found_in_any_parts_is_the_same(posts: list[dict[str, object]], data: st.DataObject) -> None:
    found = found_of([post | {"is_known": True} for post in posts])
    part_of = [data.draw(st.integers(0, 2)) for _ in posts]
    parts = []
    for number in range(3):
        which = np.flatnonzero(np.array(part_of) == number)
        of_spans, of_boxes = (np.isin(rows[:, 0], which) for rows in (found.spans, found.boxes))
        own = {post: place for place, post in enumerate(which.tolist())}
        spans, boxes = found.spans[of_spans].copy(), found.boxes[of_boxes].copy()
        for rows in (spans, boxes):
            rows[:, 0] = [own[post] for post in rows[:, 0]]
        parts.append(
            (
                which,
                Found(
                    existence=found.existence[which],
                    spans=spans,
                    span_scores=found.span_scores[of_spans],
                    boxes=boxes,
                    boxes_canvas=found.boxes_canvas[of_boxes],
                    box_scores=found.box_scores[of_boxes],
                ),
            )
        )
    assert_equal(Found.together(data.draw(st.permutations(parts)), len(posts)), found)


def test_a_post_of_no_part_is_not_known() -> None:
    one = found_of([{"is_known": True, "spans": [(0, 1, 2)], "boxes": []}])
    both = Found.together([(np.array([1]), one)], 2)
    assert np.isnan(both.existence[0]).all()
    assert both.existence[1].tolist() == one.existence[0].tolist()
    assert both.spans.tolist() == [[1, 0, 1, 2]]
    assert Found.together([], 2).existence.shape == (2, 0)
