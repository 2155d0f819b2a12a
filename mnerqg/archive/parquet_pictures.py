"""Pictures that lie in Parquet themselves: as bytes, as text, or as Hugging Face's structs."""

from collections.abc import Iterable

import pyarrow as pa

from mnerqg.archive.column_types import converted, is_bytes, is_text, plain
from mnerqg.io.picture_text import BLANKS, read_picture_text

types = pa.types

IMAGES = pa.large_binary()
STRUCTS = pa.struct([("bytes", pa.large_binary()), ("path", pa.string())])
"""Where there are no bytes, the path is read like a URI."""


def holds_images(kind: pa.DataType) -> bool:
    """Whether a plain type is bytes, text, or Hugging Face's `Image`: a struct of bytes (or text) and perhaps path."""
    if not types.is_struct(kind):
        return is_text(kind) or is_bytes(kind)
    parts = {part.name: part.type for part in kind}
    data = parts.get("bytes", pa.int8())
    fits = (is_text(data) or is_bytes(data)) and is_text(parts.get("path", pa.null()))
    return fits and len(kind) == len(parts) and parts.keys() <= {"bytes", "path"}


def images_type(kinds: Iterable[pa.DataType]) -> pa.DataType:
    """The one type of a column over all files: `IMAGES`, or `STRUCTS` where one of them has structs."""
    return STRUCTS if any(types.is_struct(plain(kind)) for kind in kinds) else IMAGES


def read_images(column: pa.Array, target: pa.DataType) -> tuple[pa.Array, list[str | None]]:
    """A column as `target`, and for each row why what was given as a picture cannot be used, None where it can.

    The reasons go on from the name of the column.
    """
    if isinstance(column.type, pa.BaseExtensionType) and types.is_struct(column.type.storage_type):
        column = column.storage
    paths = pa.nulls(len(column), pa.string())
    data = column
    if types.is_struct(column.type):
        parts = dict(zip([part.name for part in column.type], column.flatten(), strict=True))
        data = parts["bytes"]
        paths = converted(parts["path"], pa.string())[0] if "path" in parts else paths
    data, reasons = _read_data(data)
    if target == IMAGES:
        return data, reasons
    empty = column.is_null()
    return pa.StructArray.from_arrays([data, paths], fields=list(STRUCTS), mask=empty), reasons


def _read_data(column: pa.Array) -> tuple[pa.Array, list[str | None]]:
    reasons: list[str | None] = [None] * len(column)
    if not types.is_string(plain(column.type)):
        return converted(column, IMAGES)[0], reasons
    # By way of bytes: Parquet promises UTF-8, but not every writer keeps to that.
    texts = converted(column, pa.large_string())[0].cast(IMAGES).to_pylist()
    images: list[bytes | None] = []
    for row, raw in enumerate(texts):
        text = "" if raw is None else raw.decode("utf-8", "replace")
        try:
            images.append(read_picture_text(text) if text.strip(BLANKS) else None)
        except ValueError as error:
            images.append(None)
            reasons[row] = str(error)
    return pa.array(images, IMAGES), reasons
