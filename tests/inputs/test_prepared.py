from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mnerqg.inputs.prepared import (
    DECODED_TYPE,
    PICTURES,
    TEXTS,
    Views,
    has_error,
    texts_from_arrow,
    texts_to_arrow,
    without_pixels,
)
from tests.builders import text_encoder

SIDE = 4


def picture(colour: int | None) -> dict[str, Any]:
    """A canvas of one colour, or a picture that is missing."""
    usable = colour is not None
    return {
        "pixels": bytes([colour]) * (3 * SIDE**2) if colour is not None else None,
        "width": 7 if usable else None,
        "height": 9 if usable else None,
        "status": "ok" if usable else "missing",
        "error": None if usable else "404",
        "retryable": not usable,
    }


ROWS = st.lists(
    st.tuples(st.integers(0, 90), st.lists(st.none() | st.integers(0, 255), max_size=3)),
    min_size=1,
    max_size=6,
)


def table_of(rows: list[tuple[int, list[int | None]]], windows: int = 3) -> pa.Table:
    texts = ["Ada " * words for words, _ in rows]
    return pa.table(
        {
            "text": texts,
            TEXTS: texts_to_arrow([text_encoder().windows(text, windows) for text in texts]),
            PICTURES: pa.array(
                [[picture(colour) for colour in colours] for _, colours in rows], DECODED_TYPE
            ),
        }
    )


@settings(deadline=None)
@given(ROWS, st.integers(1, 3))
def test_texts_as_arrow_and_back(rows: list[tuple[int, list[int | None]]], windows: int) -> None:
    table = table_of(rows, windows)
    texts = table["text"].to_pylist()
    assert texts_from_arrow(table[TEXTS], texts) == [text_encoder().windows(text, windows) for text in texts]


@settings(deadline=None)
@given(ROWS, st.data())
def test_views_are_each_window_beside_each_usable_picture(
    rows: list[tuple[int, list[int | None]]], data: st.DataObject
) -> None:
    """In blocks that were put together and cut, as Ray hands them over."""
    whole = table_of(rows)
    cut = data.draw(st.integers(0, len(rows)))
    start = data.draw(st.integers(0, len(rows) - 1))
    table = pa.concat_tables([whole.slice(0, cut), whole.slice(cut)]).slice(start)
    expected = [
        (window.token_ids, window.begins_word, window.ends_word, colour)
        for words, colours in rows[start:]
        for colour in [colour for colour in colours if colour is not None] or [None]
        for window in text_encoder().windows("Ada " * words, 3)
    ]
    views = Views.of(table, SIDE)
    assert len(views) == sum(views.per_row) == len(expected)
    which = np.array(data.draw(st.permutations(range(len(views)))), np.int64)
    which = which[: data.draw(st.integers(1, len(which)))]
    sentences, shown = views.take(which)
    colours = dict(
        zip(shown.posts.tolist(), (int(shown.canvases[row][0, 0, 0]) for row in shown.rows), strict=True)
    )
    for place, view in enumerate(which):
        ids, begins, ends, colour = expected[view]
        _, _, pieces = sentences.pieces(np.array([place]))
        assert sentences.ids[pieces].tolist() == ids
        assert (sentences.begins_word[pieces].tolist(), sentences.ends_word[pieces].tolist()) == (
            begins,
            ends,
        )
        assert colours.get(place) == colour
    # The network takes the pictures for the posts', in order, where there are as many.
    assert shown.rows.tolist()[:1] in ([], [0])
    assert all(row <= max(shown.rows[:place], default=-1) + 1 for place, row in enumerate(shown.rows))
    lengths = views.sentences.lengths[views.by_length()]
    assert (np.diff(lengths) >= 0).all()


def test_no_canvas_is_copied() -> None:
    table = table_of([(3, [1, None, 2])])
    first, second = Views.of(table, SIDE).canvases
    data = table[PICTURES].chunk(0).flatten().flatten()[0].buffers()[2]
    for canvas in (first, second):
        assert data.address <= canvas.__array_interface__["data"][0] < data.address + data.size


def test_no_rows() -> None:
    views = Views.of(table_of([(3, [1])]).slice(0, 0), SIDE)
    assert (len(views), views.canvases, views.per_row.tolist()) == (0, [], [])


def test_all_but_the_pixels_is_kept() -> None:
    table = table_of([(1, [5, None]), (1, []), (1, [None])])
    for start in range(3):
        column = table.slice(start)[PICTURES]
        kept = [
            [{name: value for name, value in one.items() if name != "pixels"} for one in post]
            for post in column.to_pylist()
        ]
        assert without_pixels(column).to_pylist() == kept


@pytest.mark.parametrize("start", [0, 1, 2])
def test_errors(start: int) -> None:
    table = table_of([(1, [5, None]), (1, [1]), (1, [None])]).slice(start)
    assert has_error(without_pixels(table[PICTURES])).tolist() == [True, False, True][start:]
    column = pa.chunked_array([pa.array(["a", None, ""])]).slice(start)
    assert has_error(column).tolist() == [True, False, True][start:]
