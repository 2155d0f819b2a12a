"""Which columns of an archive are used, whatever its format."""

from collections.abc import Collection
from typing import Literal

from mnerqg.archive.json_values import Picture
from mnerqg.archive.jsonlines import LINE_ERROR, PICTURE_ERRORS
from mnerqg.config_jobs import ColumnsConfig
from mnerqg.errors import DataError
from mnerqg.schema import ROW_HASH, tags_schema

Pictures = Literal["bytes", "structs", "uris", "lists", "none"]
PICTURES: dict[Picture, Pictures] = {"image": "bytes", "image_uris": "lists", "image_uri": "uris"}
"""The first of these columns that an archive has is read."""


def check_name(uri: str, name: str) -> None:
    if name in (ROW_HASH, LINE_ERROR, PICTURE_ERRORS):
        raise DataError(f"{uri}: the column {name} has the name of one that tagging adds; rename it")


def picture_column(names: Collection[str], columns: ColumnsConfig) -> Picture | None:
    """Which of the columns for pictures is read."""
    return next((key for key in PICTURES if getattr(columns, key) in names), None)


def expected_pictures(columns: ColumnsConfig, picture: Picture | None) -> list[Picture]:
    """The settings of picture columns without whose columns an archive is refused.

    Somebody who sets `image_uri: url` means that there is a column url: to tag the texts alone would hide a slip of the
    pen. But a setting with its default value says less: a configuration that is written out in full has
    `image: image`, `image_uri: image_uri` and `image_uris: image_uris` for an archive with one of the three. So these
    are expected only where the archive has no picture column at all.

    Args:
        columns: of which `model_fields_set` says what was set.
        picture: the column that is read, None where the archive has none of the three.
    """
    were_set = [key for key in PICTURES if key in columns.model_fields_set]
    if picture is None:
        return were_set
    return [key for key in were_set if getattr(columns, key) != ColumnsConfig.model_fields[key].default]


def check_pass_through(columns: ColumnsConfig, picture: Picture | None = None) -> None:
    tags = tags_schema(several_pictures=picture == "image_uris").names
    for name in columns.pass_through:
        if name in tags:
            raise DataError(
                f"--columns.pass_through names {name}, which is a column of the tags; rename it in the "
                f"archive or leave it out (columns of the tags: {', '.join(tags)})"
            )
        if columns.pass_through.count(name) > 1:
            raise DataError(f"--columns.pass_through names {name} twice; name it once")
