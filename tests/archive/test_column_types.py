import uuid

import pyarrow as pa
import pytest

from mnerqg.archive.column_types import can_become, common, converted, plain, without_nulls

TEXT = [pa.string(), pa.large_string(), pa.string_view(), pa.dictionary(pa.int8(), pa.string()), pa.json_()]
BYTES = [pa.binary(), pa.large_binary(), pa.binary_view()]


@pytest.mark.parametrize(
    ("kinds", "expected"),
    [
        ([*TEXT, pa.null(), pa.uuid()], pa.string()),
        ([*BYTES, pa.null(), pa.binary(4)], pa.binary()),
        ([pa.null()], pa.null()),
        ([pa.int32(), pa.int64(), pa.null()], pa.int64()),
        ([pa.uint32(), pa.int32()], pa.int64()),
        ([pa.int64(), pa.float32()], pa.float64()),
        ([pa.decimal128(5, 2), pa.decimal128(10, 4), pa.int8()], pa.decimal128(10, 4)),
        ([pa.timestamp("s"), pa.timestamp("us")], pa.timestamp("us")),
        ([pa.timestamp("ms", "UTC"), pa.timestamp("us", "Europe/Berlin")], pa.timestamp("us", "UTC")),
        (
            [pa.list_(pa.null()), pa.large_list(pa.string_view()), pa.list_view(pa.string())],
            pa.list_(pa.string()),
        ),
        (
            [pa.struct([("a", pa.null())]), pa.struct([("b", pa.int8()), ("a", pa.large_string())])],
            pa.struct([("a", pa.string()), ("b", pa.int8())]),
        ),
        (
            [pa.map_(pa.large_string(), pa.null()), pa.map_(pa.string(), pa.int8())],
            pa.map_(pa.string(), pa.int8()),
        ),
        # What would lose something.
        ([pa.string(), pa.binary()], None),
        ([pa.uuid(), pa.binary(16)], None),
        ([pa.decimal128(5, 2), pa.float64()], None),
        ([pa.string(), pa.int64()], None),
        ([pa.bool_(), pa.int8()], None),
        ([pa.timestamp("s"), pa.timestamp("s", "UTC")], None),
        ([pa.list_(pa.int8()), pa.int8()], None),
    ],
    ids=lambda value: str(value)[:60],
)
def test_common_types(kinds: list[pa.DataType], expected: pa.DataType | None) -> None:
    for order in (kinds, kinds[::-1]):
        found = common(order)
        if expected is None or not pa.types.is_struct(expected):
            assert found == expected
        else:
            assert {(field.name, field.type) for field in found} == {
                (field.name, field.type) for field in expected
            }
        assert expected is None or all(can_become(kind, without_nulls(found)) for kind in kinds)


def test_no_type_is_left_unknown() -> None:
    assert without_nulls(pa.list_(pa.null())) == pa.list_(pa.string())
    assert without_nulls(pa.struct([("a", pa.null())])) == pa.struct([("a", pa.string())])
    assert plain(pa.list_(pa.uuid())) == pa.list_(pa.uuid())


def test_values_are_kept_or_named() -> None:
    ids = [uuid.UUID(int=7), None]
    column = pa.array([one and one.bytes for one in ids], pa.uuid())
    assert converted(column, pa.string())[0].to_pylist() == [str(ids[0]), None]
    numbers, unfit = converted(pa.array([1, 2**60 + 1, None, 3]), pa.float64())
    assert (numbers.to_pylist(), unfit) == ([1.0, None, None, 3.0], [1])
    times, unfit = converted(pa.array([0, 2**60], pa.timestamp("s")), pa.timestamp("us"))
    assert (times.null_count, unfit) == (1, [1])
    assert converted(pa.array(["a", "b"]).dictionary_encode(), pa.string()) == (pa.array(["a", "b"]), [])
