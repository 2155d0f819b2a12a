"""The folder of a tagging run: which rows of the archive are done, and when the run is finished.

    tags/            *.parquet and nothing else, so that every reader takes the folder as it is: polars does not skip
                     names that begin with _ or a dot; in Hive folders where the run is partitioned
    tags/kept-*      of them, those taken over from the run that this one repairs (`--retry-failed`)
    _run.json        what was asked for, from the start on
    _manifest.json   files, rows, counts by status and type, reasons of failures, time
    _SUCCESS         empty, written last and only where everything is in order
    _lock.json       who is writing there (`io.lock`)

The tags themselves say what is done: a row is, when its `row_hash` lies in a whole Parquet file of the run, one that
has its footer. Whatever else a death leaves, `reconcile` puts right:

- A file without a footer goes. On a disk a killed writer leaves one. In S3 a file appears when its upload ends, and of
  a writer that is killed nothing is seen; but pyarrow also ends the upload of a stream that it drops half-written.
- Of two files with a row in common one goes. Ray gives the files of a write the same names when it tries again, W-0,
  W-1, …, so the second try as a rule replaces what the first one left. But that may have cut its rows into files in
  another way, or be at work still on a node that counts as lost; and the workers of a driver that was killed may end
  a file after the next driver has looked.
- A file with rows of a part of the archive that is left out by now (`--skip-damaged`) goes.
- The rows of what went, if they lie nowhere else, are tagged again, like those of files that were never written.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from mnerqg.archive.counts import TagCounts
from mnerqg.archive.jsonlines import row_hashes
from mnerqg.archive.reading import Archive, LeftOut
from mnerqg.errors import DataError, RunError, StorageError
from mnerqg.io import storage
from mnerqg.io.parquet import open_parquet
from mnerqg.io.run_folder import RunFolder
from mnerqg.schema import ROW_HASH

MANIFEST_FILE = "_manifest.json"
SUCCESS_FILE = "_SUCCESS"
TAGS_FOLDER = "tags"
_KEPT_PREFIX = "kept-"

RowHashes = npt.NDArray[np.uint64]

_DELETED_IN_FLIGHT = 16
# Parquet files: each thread that reads one keeps a MiB or more of memory.
_READ_IN_FLIGHT = 4
_COUNTED_IN_FLIGHT = 2


def tags_folder(uri: str, option: str = "--output") -> RunFolder:
    """The folder of a tagging run, which `option` named."""
    return RunFolder(
        uri,
        "tagging run",
        option,
        result_file=MANIFEST_FILE,
        mark=SUCCESS_FILE,
        restartable=option == "--output",
    )


def tags_of(output: str) -> str:
    """Where the tags of a run lie."""
    return storage.join(output, TAGS_FOLDER)


def _tag_files(output: str) -> list[storage.FileEntry]:
    tags = tags_of(output)
    return storage.list_files(tags, ".parquet") if storage.exists(tags) else []


def asked(model_id: str, archive: Archive, settings: Mapping[str, Any], base: str | None) -> dict[str, Any]:
    """What decides the rows of a run, as `RunFolder` compares it.

    Args:
        model_id: of the model.
        archive: the posts; its files count with their names and sizes.
        settings: of those of the configuration that decide what a row says, JSON values.
        base: URI of the run that this one repairs (`--retry-failed`).
    """
    # Damaged files count, left out or not: that they are left out now is no other run.
    entries = sorted([*archive.files, *(one.entry for one in archive.left_out)], key=lambda entry: entry.uri)
    files = json.dumps([(entry.uri, entry.size) for entry in entries])
    return {
        "model_id": model_id,
        "archive": list(archive.uris),
        "rows": archive.rows + sum(one.rows for one in archive.left_out),
        "files": {
            "count": len(entries),
            "bytes": sum(entry.size for entry in entries),
            "digest": hashlib.sha256(files.encode()).hexdigest()[:16],
        },
        **settings,
        "retry_failed": base,
    }


# ---- what is done --------------------------------------------------------------------------------


def reconcile(output: str, left_out: Iterable[LeftOut] = ()) -> RowHashes:
    """Delete torn files and doubles (see above) and return the sorted `row_hash` of the rows that are done.

    Args:
        output: folder of the run.
        left_out: files of the archive whose rows are not to be there.

    Raises:
        StorageError: the output cannot be read or written, or holds Parquet that are no tags.
    """
    files = _tag_files(output)
    with ThreadPoolExecutor(_READ_IN_FLIGHT) as pool:
        found = zip(files, pool.map(_row_hashes, files), strict=True)
        whole = {entry.uri: rows for entry, rows in found if rows is not None}
    unwanted = _sorted(row_hashes(storage.path_of(one.entry.uri), 0, one.rows) for one in left_out)
    whole = {uri: rows for uri, rows in whole.items() if not np.isin(rows, unwanted).any()}
    good = _without_doubles(whole)
    with ThreadPoolExecutor(_DELETED_IN_FLIGHT) as pool:
        list(pool.map(storage.delete_file, (entry.uri for entry in files if entry.uri not in good)))
    return _sorted(good.values())


def _row_hashes(entry: storage.FileEntry) -> RowHashes | None:
    """Those of a file of tags, None where it is torn."""
    try:
        with open_parquet(entry) as file:
            if ROW_HASH not in file.schema_arrow.names:
                raise StorageError(f"{entry.uri} holds no tags (no column {ROW_HASH}); move it elsewhere")
            return np.asarray(file.read([ROW_HASH], use_threads=False)[ROW_HASH].to_numpy(), np.uint64)
    except DataError:
        return None


def _without_doubles(files: dict[str, RowHashes]) -> dict[str, RowHashes]:
    """The files but those with a row of an earlier one, in the order of their URIs; what was kept comes first."""
    everything = _sorted(files.values())
    doubles = everything[1:][everything[1:] == everything[:-1]]
    if not len(doubles):
        return files
    good: dict[str, RowHashes] = {}
    seen: set[int] = set()
    for uri, rows in sorted(files.items(), key=lambda item: (not _is_kept(item[0]), item[0])):
        shared = rows[np.isin(rows, doubles)].tolist()
        if len(set(shared)) == len(shared) and not seen.intersection(shared):
            good[uri] = rows
            seen.update(shared)
    return good


def _is_kept(uri: str) -> bool:
    return uri.rpartition("/")[2].startswith(_KEPT_PREFIX)


def _sorted(parts: Iterable[RowHashes]) -> RowHashes:
    parts = list(parts)
    return np.sort(np.concatenate(parts)) if parts else np.empty(0, np.uint64)


# ---- repairing an earlier run ----------------------------------------------------------------------


def check_base(base: str, asked: Mapping[str, Any]) -> None:
    """Check that the run at `base` can be repaired by one that is `asked` for.

    Raises:
        StorageError: it is no run, not a complete one, or one of another model, archive or settings.
        DataError: there is nothing to repair.
    """
    folder = tags_folder(base, "--retry-failed")
    run = folder.begun()
    if run is None:
        raise StorageError(f"--retry-failed {base} is no tagging run; give the --output of an earlier one")
    # It may itself be the repair of another one.
    folder.check({**asked, "retry_failed": run["asked"].get("retry_failed")})
    manifest = storage.join(base, MANIFEST_FILE)
    if not storage.exists(manifest):
        raise StorageError(f"--retry-failed {base} is not complete; run its own command again first")
    if not json.loads(storage.read_text(manifest))["rows_retryable"]:
        raise DataError(
            f"--retry-failed {base} has no rows that failed for a passing reason; nothing is to be done"
        )


def keep_good_rows(base: str, output: str) -> None:
    """Copy all rows of the run at `base` but the retryable ones, which are then what is not there.

    Each file appears as a whole; what an earlier call has copied is left as it is.
    """
    copied = {_place_in(output, entry) for entry in _tag_files(output)}
    missing = []
    for entry in _tag_files(base):
        folder, _, name = _place_in(base, entry).rpartition("/")
        place = f"{folder}/{_KEPT_PREFIX}{name}".lstrip("/")
        if place not in copied:
            missing.append((entry, storage.join(tags_of(output), *place.split("/"))))
    with ThreadPoolExecutor(_READ_IN_FLIGHT) as pool:
        list(pool.map(lambda copy: _keep(*copy), missing))


def _place_in(output: str, entry: storage.FileEntry) -> str:
    """The path of a file of tags below their folder, such as `lang=en/a-0.parquet`."""
    return storage.path_of(entry.uri).removeprefix(storage.path_of(tags_of(output)) + "/")


def _keep(entry: storage.FileEntry, target: str) -> None:
    with open_parquet(entry) as file:
        retryable = file.read(["retryable"])["retryable"]
    count = pc.sum(retryable).as_py() or 0
    if not count:
        storage.copy_file(entry.uri, target)
    elif count < len(retryable):
        with open_parquet(entry) as file:
            rows = file.read().filter(pc.invert(retryable))
        buffer = pa.BufferOutputStream()
        pq.write_table(rows, buffer, compression="zstd")
        storage.write_bytes(target, buffer.getvalue().to_pybytes())


# ---- the end -------------------------------------------------------------------------------------


def finish(
    folder: RunFolder, archive: Archive, facts: Mapping[str, Any], *, max_failed: float
) -> dict[str, Any]:
    """Read back what was written and, if it is all there, write the manifest and mark the run as finished.

    Args:
        folder: of the run.
        archive: whose rows there must be.
        facts: of this run, for the manifest: its request, seconds and so on.
        max_failed: the share of failed pictures or posts above which the run has failed.

    Raises:
        RunError: rows are missing or double, or too many failed; then there is no _SUCCESS.
    """
    output = folder.uri
    files = _tag_files(output)
    with ThreadPoolExecutor(_COUNTED_IN_FLIGHT) as pool:
        parts = list(pool.map(TagCounts.of_file, files))
    counts = TagCounts.total(parts)
    ids = _sorted(counts.row_hashes)
    doubles = int((ids[1:] == ids[:-1]).sum())
    if counts.rows != archive.rows or doubles:
        raise RunError(
            f"{output} holds {counts.rows:,} rows ({doubles:,} of them double) for the {archive.rows:,} posts of "
            f"{archive.name}; the run is not marked as finished: run the same command again, and if that "
            "does not help, with --restart"
        )
    failure = judge(counts, max_failed)
    manifest = {
        **facts,
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
        "failure": failure,
        **counts.summary(),
        "files_left_out": [
            {"file": one.entry.uri, "rows": one.rows, "reason": one.reason} for one in archive.left_out
        ],
        "files": [
            {
                "name": f"{TAGS_FOLDER}/{_place_in(output, entry)}",
                "rows": part.rows,
                "bytes": entry.size,
            }
            for entry, part in zip(files, parts, strict=True)
        ],
    }
    folder.finish(manifest, failed=failure is not None)
    if failure:
        raise RunError(
            f"{failure}; all rows are tagged and lie in {output}, but the run is not marked as finished: accept it "
            "with a higher --max-failed, or tag again what failed for a passing reason with "
            f"--retry-failed {output}"
        )
    return manifest


def judge(counts: TagCounts, max_failed: float) -> str | None:
    """Why a complete run counts as failed, with the reasons counted, or None."""
    asked = sum(counts.image_status.values()) - counts.image_status["none"]
    failed = asked - counts.image_status["ok"]
    reasons = ", ".join(f"{count:,} x {reason}" for reason, count in counts.reasons.most_common(5))
    if asked and failed / asked > max_failed:
        share = f"{failed / asked:.1%}"
        return f"{failed:,} of {asked:,} pictures failed ({share}, more than {max_failed:.1%}): {reasons}"
    if counts.rows and counts.unread / counts.rows > max_failed:
        return (
            f"{counts.unread:,} of {counts.rows:,} posts could not be read as they stand in the archive "
            f"({counts.unread / counts.rows:.1%}, more than {max_failed:.1%}): {reasons}"
        )
    if counts.rows and counts.untagged / counts.rows > max_failed:
        return (
            f"the model could not tag {counts.untagged:,} of {counts.rows:,} posts "
            f"({counts.untagged / counts.rows:.1%}, more than {max_failed:.1%}): {reasons}"
        )
    return None
