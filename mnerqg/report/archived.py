"""Texts and pictures of the sampled posts, which tags do not hold: from the archive that was tagged."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import numpy as np
from pydantic import ValidationError

from mnerqg.archive.lookup import ArchivedPost, find_by_hash, find_by_id
from mnerqg.archive.reading import Archive, open_archive
from mnerqg.config_jobs import ColumnsConfig, PicturesConfig, ReportConfig
from mnerqg.errors import MnerqgError
from mnerqg.io import storage
from mnerqg.report.tags import Tags
from mnerqg.report.thumbnails import Thumbnail, Thumbnails

_POSTS_AT_ONCE = 64
"""Whose encoded pictures are in memory together."""


@dataclass
class Archived:
    """What the archive gave.

    Attributes:
        posts: text and thumbnails by `row_hash`.
        archive: None where it could not be read.
        columns: of the archive.
        places: where the archive lies, or lay.
        notices: what the reader of the report should know.
    """

    posts: dict[int, tuple[str | None, list[Thumbnail]]] = field(default_factory=dict)
    archive: Archive | None = None
    columns: ColumnsConfig = field(default_factory=ColumnsConfig)
    places: tuple[str, ...] = ()
    notices: list[str] = field(default_factory=list)


def read_archived(
    tags: Tags, rows: Mapping[int, Mapping[str, Any]], given: Sequence[str] | None, config: ReportConfig
) -> Archived:
    """Find the posts of `rows` in the archive and make thumbnails of their pictures.

    Args:
        tags: whose run says which archive was tagged, with which columns, and where its pictures may lie.
        rows: of the tags, by `row_hash`.
        given: URIs of the archive, where it is not, or no longer, what the run says.
        config: settings; what is not set there is as the run says.

    Raises:
        MnerqgError: the archive that is `given` cannot be read. Another one that cannot is a notice.
    """
    places = tuple(map(storage.absolute, given or tags.request.get("input") or ()))
    found = Archived(columns=_columns(tags, config), places=places)
    if not places:
        found.notices.append(
            "The tags do not say which archive they are of, so that texts and pictures are not shown; "
            "name it with --input."
        )
        return found
    try:
        # A run that left damaged files out says so in its manifest.
        left_out = bool((tags.manifest or {}).get("files_left_out"))
        found.archive = open_archive(places, found.columns, skip_damaged=left_out)
        pictures = _pictures(tags, config, found.archive, given)
        with ThreadPoolExecutor(pictures.concurrency) as pool:
            thumbnails = Thumbnails(pictures, len(rows), pool)
            for post, own in _with_thumbnails(_find(found, rows), rows, thumbnails):
                found.posts[post] = own
    except MnerqgError as error:
        if given is not None:
            raise
        found.notices.append(
            f"The archive cannot be read from here, so that texts and pictures are not shown: {error}. "
            "Where it has been moved, name it with --input."
        )
    lacking = len(rows) - len(found.posts)
    if found.archive is not None and lacking:
        found.notices.append(f"{lacking:,} of the posts shown are not in the archive {found.archive.name}.")
    return found


def _columns(tags: Tags, config: ReportConfig) -> ColumnsConfig:
    said = (tags.request.get("config") or {}).get("columns")
    if said is None or config.columns.model_fields_set:
        return config.columns
    try:
        return ColumnsConfig.model_validate(said)
    except ValidationError:  # of another version of this software
        return config.columns


def _pictures(
    tags: Tags, config: ReportConfig, archive: Archive, given: Sequence[str] | None
) -> PicturesConfig:
    """The settings with roots: those that are set, else the folder of an archive that is given, and the run's.

    Schemes and bounds are this command's: no file in the folder of the tags can make the report ask a host that its
    user has not allowed.
    """
    if config.pictures.roots:
        return config.pictures
    said = ((tags.run or {}).get("asked") or {}).get("pictures") or {}
    of_run = [str(root) for root in said.get("roots") or ()]
    roots = [*archive.folders, *of_run] if given is not None or not of_run else of_run
    return config.pictures.model_copy(update={"roots": tuple(roots)})


def _find(found: Archived, rows: Mapping[int, Mapping[str, Any]]) -> Iterator[ArchivedPost]:
    """The posts, each under the `row_hash` that it has in the tags."""
    assert found.archive is not None
    wanted = np.fromiter(rows, np.uint64, len(rows))
    any_found = False
    for post in find_by_hash(found.archive, found.columns, wanted):
        any_found = True
        yield post
    if any_found:
        return
    # Moved or copied since it was tagged: then other rows have these hashes, or none has.
    hashes: dict[str, list[int]] = {}
    for row_hash, row in rows.items():
        if row["post_id"] is not None:
            hashes.setdefault(row["post_id"], []).append(row_hash)
    for post in find_by_id(found.archive, found.columns, set(hashes)):
        for row_hash in hashes[post.post_id or ""]:
            yield ArchivedPost(row_hash, post.post_id, post.text, post.pictures)


def _with_thumbnails(
    posts: Iterable[ArchivedPost], rows: Mapping[int, Mapping[str, Any]], thumbnails: Thumbnails
) -> Iterator[tuple[int, tuple[str | None, list[Thumbnail]]]]:
    remaining = iter(posts)
    while batch := list(islice(remaining, _POSTS_AT_ONCE)):
        usable = [_usable(post.pictures, rows[post.row_hash]) for post in batch]
        for post, made in zip(batch, thumbnails.make(usable), strict=True):
            yield post.row_hash, (post.text, made)


def _usable(pictures: Sequence[bytes | str | None], row: Mapping[str, Any]) -> Sequence[bytes | str | None]:
    """The pictures, but None for those that tagging could not use: there is no box for them to show."""
    statuses = [one["status"] for one in row.get("images") or [{"status": row["image_status"]}]]
    return [
        picture if place < len(statuses) and statuses[place] == "ok" else None
        for place, picture in enumerate(pictures)
    ]
