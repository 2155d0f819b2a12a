"""How Arrow types of one column fit together over the files of an archive.

Writers lay the same values out in different ways: pandas writes categories, DuckDB and polars other kinds of text, and
an hour without a language a column of nulls. Here these are one type; numbers, times and nested values are widened as
far as no value can change by it.
"""

import functools
import uuid
from collections.abc import Iterable

import pyarrow as pa

types = pa.types


def plain(kind: pa.DataType) -> pa.DataType:
    """The type of the values, whatever way a writer laid them out: text is `string`, bytes are `binary`.

    Values of a dictionary count as themselves, UUIDs as text, other extension types as what they are stored as.
    """
    if types.is_dictionary(kind) or types.is_run_end_encoded(kind):
        return plain(kind.value_type)
    if isinstance(kind, pa.UuidType):
        return pa.string()
    if isinstance(kind, pa.BaseExtensionType):
        return plain(kind.storage_type)
    if types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind):
        return pa.string()
    if types.is_binary(kind) or types.is_large_binary(kind) or types.is_binary_view(kind):
        return pa.binary()
    if types.is_map(kind):
        return pa.map_(_inner(kind.key_type), _inner(kind.item_type))
    if types.is_struct(kind):
        return pa.struct([pa.field(field.name, _inner(field.type)) for field in kind])
    if types.is_nested(kind) and hasattr(kind, "value_type"):
        return pa.list_(_inner(kind.value_type))
    return kind


def _inner(kind: pa.DataType) -> pa.DataType:
    # Within lists and structs UUIDs stay what they are: Arrow has no cast from them to text.
    return kind if isinstance(kind, pa.UuidType) else plain(kind)


def common(kinds: Iterable[pa.DataType]) -> pa.DataType | None:
    """The one plain type that holds the values of all `kinds`; None where there is none. Nulls fit any type."""
    found = list(dict.fromkeys(map(plain, kinds)))
    zones = {kind.tz for kind in found if types.is_timestamp(kind)}
    if len(zones) > 1 and None not in zones:  # the same instants, shown in different zones
        found = [pa.timestamp(kind.unit, "UTC") if types.is_timestamp(kind) else kind for kind in found]
    for is_one, is_other in ((types.is_string, is_bytes), (types.is_decimal, types.is_floating)):
        if any(map(is_one, found)) and any(map(is_other, found)):
            return None  # Arrow would make bytes of text, and inexact numbers of exact ones
    try:
        return functools.reduce(_merged, found, pa.null())
    except (pa.ArrowInvalid, pa.ArrowTypeError, pa.ArrowNotImplementedError):
        return None


def is_bytes(kind: pa.DataType) -> bool:
    """Whether a plain type is one of bytes."""
    return bool(types.is_binary(kind) or types.is_fixed_size_binary(kind))


def is_text(kind: pa.DataType) -> bool:
    """Whether a plain type is one of text, or of nothing but nulls."""
    return bool(types.is_string(kind) or types.is_null(kind))


def _merged(one: pa.DataType, other: pa.DataType) -> pa.DataType:
    schemas = [pa.schema([pa.field("x", kind)]) for kind in (one, other)]
    return plain(pa.unify_schemas(schemas, promote_options="permissive").field(0).type)


def without_nulls(kind: pa.DataType) -> pa.DataType:
    """`kind` with text wherever nothing is known but nulls: a reader of several nights' tags finds one type."""
    if types.is_null(kind):
        return pa.string()
    if types.is_map(kind):
        return pa.map_(kind.key_type, without_nulls(kind.item_type))
    if types.is_struct(kind):
        return pa.struct([pa.field(field.name, without_nulls(field.type)) for field in kind])
    if types.is_list(kind):
        return pa.list_(without_nulls(kind.value_type))
    return kind


def can_become(kind: pa.DataType, target: pa.DataType) -> bool:
    """Whether Arrow converts columns of one type to the other; a value may still not fit."""
    try:
        converted(pa.nulls(1, kind), target)
    except (pa.ArrowInvalid, pa.ArrowTypeError, pa.ArrowNotImplementedError):
        return False
    return True


def converted(column: pa.Array, target: pa.DataType) -> tuple[pa.Array, list[int]]:
    """`column` as `target`, and the places of the values that do not fit, which are null there.

    Raises:
        pa.ArrowException: `can_become` says no.
    """
    if types.is_dictionary(column.type):
        column = column.dictionary_decode()
    if isinstance(column.type, pa.UuidType):
        texts = [
            None if value is None else str(uuid.UUID(bytes=value)) for value in column.storage.to_pylist()
        ]
        column = pa.array(texts, pa.string())
    try:
        return column.cast(target), []
    except pa.ArrowInvalid:
        if len(column) == 0 or column.null_count == len(column):
            raise
    parts: list[pa.Array] = []
    unfit: list[int] = []
    for place in range(len(column)):
        try:
            parts.append(column.slice(place, 1).cast(target))
        except pa.ArrowInvalid:
            parts.append(pa.nulls(1, target))
            unfit.append(place)
    return pa.concat_arrays(parts), unfit
