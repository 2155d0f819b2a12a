"""The directory of a tagging run: who it belongs to, what of it is safe, and when it is finished (DESIGN §6).

    _run.json        what was asked for, from the start on
    *.parquet        the tags; in Hive folders where the run is partitioned
    _checkpoint/     Ray Data's: one file of row_hash values for every finished write; gone at the end
    _manifest.json   files, rows, counts by status and type, reasons of failures, time
    _SUCCESS         empty, written last and only where everything is in order
    _lock.json       who is writing there (`run_lock`)

Spark, pandas and Ray leave out names that begin with `_`; DuckDB's `**` does not, so the ids go at the end.

A write first puts down `_checkpoint/W.pending.parquet`, then the tags `W-0.parquet`, `W-1.parquet`, …, and at
last renames the first to `_checkpoint/W.parquet`. So a file of tags counts if and only if its ids are there
under their final name, it holds as many rows as they say, and none of them is in another write. `reconcile`
makes that true after whatever death: what does not count is deleted, and its rows are tagged again.
"""

import hashlib
import json
import uuid
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from mnerqg.archive.counts import TagCounts
from mnerqg.archive.reading import Archive
from mnerqg.errors import DataError, RunError, StorageError
from mnerqg.io import storage
from mnerqg.io.lock import LOCK_FILE
from mnerqg.io.parquet import count_rows, open_parquet
from mnerqg.schema import ROW_HASH

RUN_FILE = "_run.json"
MANIFEST_FILE = "_manifest.json"
SUCCESS_FILE = "_SUCCESS"
CHECKPOINT_FOLDER = "_checkpoint"
_PENDING = ".pending.parquet"
KEPT_PREFIX = "kept-"
"""Of files taken over from an earlier run (`--retry-failed`), which have no ids of their own."""

RowHashes = npt.NDArray[np.uint64]

_IN_FLIGHT = 16
# Parquet files: each thread that reads one keeps a MiB or more of memory.
_IDS_IN_FLIGHT = 4
_COUNTED_IN_FLIGHT = 2


@dataclass(frozen=True)
class RunIdentity:
    """What decides the rows of a run: a run may only be continued by one with the same.

    Attributes:
        model_id: of the model.
        archive: URI of the archive.
        digest: of the archive's files with their sizes and of the settings that decide what a row says.
        rows: posts of the archive.
        base: the run that this one repairs (`--retry-failed`).
    """

    model_id: str
    archive: str
    digest: str
    rows: int
    base: str | None = None


def identify(
    model_id: str, archive: Archive, settings: Mapping[str, Any], base: str | None = None
) -> RunIdentity:
    """The identity of a run over `archive` with `settings` (JSON values)."""
    files = [(entry.uri, entry.size) for entry in archive.files]
    state = json.dumps([files, archive.rows, settings], sort_keys=True)
    digest = hashlib.sha256(state.encode()).hexdigest()[:16]
    return RunIdentity(model_id, archive.uri, digest, archive.rows, base)


@dataclass(frozen=True)
class RunState:
    """What lies at an output: nothing (no run_id), an unfinished run, or a finished one with its manifest."""

    run_id: str | None = None
    identity: RunIdentity | None = None
    manifest: dict[str, Any] | None = None

    @property
    def finished(self) -> bool:
        return self.manifest is not None


def read_state(output: str) -> RunState:
    """Look at an output without touching it.

    Raises:
        StorageError: it cannot be read, or holds files that are not a run's.
    """
    if not storage.exists(output):
        return RunState()
    run_file = storage.join(output, RUN_FILE)
    if not storage.exists(run_file):
        if storage.list_files(output):
            raise StorageError(
                f"--output {output} holds files that are no tagging run's; choose another folder or empty it"
            )
        return RunState()
    try:
        run = json.loads(storage.read_text(run_file))
        identity = RunIdentity(**run["identity"])
        manifest = None
        if storage.exists(storage.join(output, SUCCESS_FILE)):
            manifest = json.loads(storage.read_text(storage.join(output, MANIFEST_FILE)))
        return RunState(run["run_id"], identity, manifest)
    except (ValueError, TypeError, KeyError):
        raise StorageError(
            f"{run_file} or {MANIFEST_FILE} beside it is damaged, or of another version of this software; "
            "choose another --output"
        ) from None


def check_state(output: str, state: RunState, identity: RunIdentity, *, restart: bool) -> None:
    """Refuse to mix two runs, or to start a finished one over.

    Raises:
        StorageError: the output belongs to a run with another model, archive or settings, or it is finished and
            `restart` is asked for.
    """
    if restart and state.finished:
        raise StorageError(
            f"--output {output} holds a finished run, which --restart never touches; choose another folder"
        )
    if state.identity is None or state.identity == identity or restart:
        return
    names = {"model_id": "model", "archive": "archive", "rows": "number of posts", "base": "--retry-failed"}
    for name, words in names.items():
        there, asked = getattr(state.identity, name), getattr(identity, name)
        if there != asked:
            difference = f"{words}: {there} there, {asked} now"
            break
    else:
        difference = "files of the archive, columns or pictures.* settings"
    remedy = "" if state.finished else ", or start over with --restart"
    raise StorageError(
        f"--output {output} belongs to a run of something else ({difference}); choose another folder{remedy}"
    )


def claim(output: str, identity: RunIdentity, request: Mapping[str, Any], *, restart: bool) -> str:
    """Make the output this run's and return the run_id: a new one, or that of the run which is continued.

    Raises:
        StorageError: the output cannot be written, or is another run's.
    """
    state = read_state(output)
    check_state(output, state, identity, restart=restart)
    if state.finished:
        raise StorageError(f"--output {output} holds a finished run; choose another folder")
    if state.run_id is not None and not restart:
        return state.run_id
    if state.run_id is not None:  # only what is a run's: the folder may hold somebody's hidden files
        storage.delete_directory(output, keep=LOCK_FILE)
    run_id = uuid.uuid4().hex[:12]
    run = {
        "run_id": run_id,
        "identity": vars(identity),
        "request": dict(request),
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    storage.write_text(storage.join(output, RUN_FILE), json.dumps(run, indent=2) + "\n")
    return run_id


# ---- what is safe --------------------------------------------------------------------------------


def reconcile(output: str) -> RowHashes:
    """Delete what does not count (see above) and return the sorted ids of the rows that do.

    Raises:
        StorageError: the output cannot be read or written.
    """
    checkpoint = storage.join(output, CHECKPOINT_FOLDER)
    id_files = storage.list_files(checkpoint) if storage.exists(checkpoint) else []
    pending = [entry for entry in id_files if entry.uri.endswith(_PENDING)]
    committed = {_name(entry): entry for entry in id_files if not entry.uri.endswith(_PENDING)}
    tags: dict[str, list[storage.FileEntry]] = defaultdict(list)
    for entry in storage.list_files(output, ".parquet"):
        if not _name(entry).startswith(KEPT_PREFIX):
            tags[_name(entry).rpartition("-")[0]].append(entry)
    with ThreadPoolExecutor(_IDS_IN_FLIGHT) as pool:
        ids = dict(zip(committed, pool.map(_read_ids, committed.values()), strict=True))
        rows = dict(zip(tags, pool.map(_rows_or_none, tags.values()), strict=True))
    whole = {write: own for write, own in ids.items() if own is not None and rows.get(write) == len(own)}
    good = _without_doubles(whole)
    doomed = [entry for write, files in tags.items() if write not in good for entry in files]
    # The ids last: without them the tags are known not to count, whatever happens in between.
    doomed_ids = [entry for write, entry in committed.items() if write not in good] + pending
    with ThreadPoolExecutor(_IN_FLIGHT) as pool:
        for batch in (doomed, doomed_ids):
            list(pool.map(lambda entry: storage.delete_file(entry.uri), batch))
    return _sorted(good.values())


def _without_doubles(writes: dict[str, RowHashes]) -> dict[str, RowHashes]:
    """The writes but those with rows of an earlier one, as a worker leaves that outlives its driver for a moment."""
    everything = _sorted(writes.values())
    doubles = everything[1:][everything[1:] == everything[:-1]]
    if not len(doubles):
        return writes
    good: dict[str, RowHashes] = {}
    seen: set[int] = set()
    for write, own in sorted(writes.items()):
        shared = set(own[np.isin(own, doubles)].tolist())
        if not shared & seen:
            good[write] = own
            seen |= shared
    return good


def _sorted(parts: Iterable[RowHashes]) -> RowHashes:
    parts = list(parts)
    return np.sort(np.concatenate(parts)) if parts else np.empty(0, np.uint64)


def _name(entry: storage.FileEntry) -> str:
    return entry.uri.rpartition("/")[2].removesuffix(".parquet")


def _read_ids(entry: storage.FileEntry) -> RowHashes | None:
    try:
        with open_parquet(entry) as file:
            return np.asarray(file.read([ROW_HASH], use_threads=False)[ROW_HASH].to_numpy(), np.uint64)
    except DataError:
        return None


def _rows_or_none(files: Sequence[storage.FileEntry]) -> int | None:
    """Rows of a write's files together, None where one is no whole Parquet file."""
    try:
        return sum(count_rows(entry) for entry in files)
    except DataError:
        return None


# ---- repairing an earlier run ----------------------------------------------------------------------


def check_base(base: str, identity: RunIdentity) -> None:
    """Check that a run can be repaired by one with this identity.

    Raises:
        StorageError: it is no run, not a complete one, or one of another model, archive or settings.
        DataError: there is nothing to repair.
    """
    state = read_state(base)
    if state.identity is None:
        raise StorageError(f"--retry-failed {base} is no tagging run; give the --output of an earlier one")
    check_state(base, state, replace(identity, base=state.identity.base), restart=False)
    if not storage.exists(storage.join(base, MANIFEST_FILE)):
        raise StorageError(f"--retry-failed {base} is not complete; run its own command again first")
    manifest = json.loads(storage.read_text(storage.join(base, MANIFEST_FILE)))
    if not manifest["rows_retryable"]:
        raise DataError(
            f"--retry-failed {base} has no rows that failed for a passing reason; nothing is to be done"
        )


def retryable_rows(base: str) -> RowHashes:
    """The sorted ids of a run's rows whose pictures failed for a passing reason."""
    with ThreadPoolExecutor(_IN_FLIGHT) as pool:
        tables = list(pool.map(_read_retryable, storage.list_files(base, ".parquet")))
    return _sorted(table.filter(table["retryable"])[ROW_HASH].to_numpy() for table in tables)


def take_over(base: str, output: str) -> None:
    """Copy everything of a run but its retryable rows."""
    with ThreadPoolExecutor(_IN_FLIGHT) as pool:
        list(
            pool.map(lambda entry: _take_over_file(entry, base, output), storage.list_files(base, ".parquet"))
        )


def _take_over_file(entry: storage.FileEntry, base: str, output: str) -> None:
    folder, _, name = entry.uri.removeprefix(base.rstrip("/") + "/").rpartition("/")
    target = storage.join(output, folder, KEPT_PREFIX + name)
    retryable = _read_retryable(entry)["retryable"]
    if not pc.any(retryable).as_py():
        storage.copy_file(entry.uri, target)
        return
    with open_parquet(entry) as file:
        table = file.read().filter(pc.invert(retryable))
    buffer = pa.BufferOutputStream()
    pq.write_table(table, buffer, compression="zstd")
    storage.write_bytes(target, buffer.getvalue().to_pybytes())


def _read_retryable(entry: storage.FileEntry) -> pa.Table:
    with open_parquet(entry) as file:
        return file.read(["retryable", ROW_HASH])


# ---- the end -------------------------------------------------------------------------------------


def finish(
    output: str, identity: RunIdentity, facts: Mapping[str, Any], *, max_failed: float
) -> dict[str, Any]:
    """Read back what was written and, if it is all there, write the manifest and mark the run as finished.

    Args:
        output: URI of the run.
        identity: whose rows there must be.
        facts: of this run, for the manifest: its request, seconds and so on.
        max_failed: the share of failed pictures or posts above which the run has failed.

    Raises:
        RunError: rows are missing or double, or too many failed; then there is no _SUCCESS.
    """
    files = storage.list_files(output, ".parquet")
    with ThreadPoolExecutor(_COUNTED_IN_FLIGHT) as pool:
        parts = list(pool.map(TagCounts.of_file, files))
    counts = TagCounts.total(parts)
    ids = _sorted(counts.row_hashes)
    doubles = int((ids[1:] == ids[:-1]).sum())
    if counts.rows != identity.rows or doubles:
        raise RunError(
            f"{output} holds {counts.rows:,} rows ({doubles:,} of them double) for the {identity.rows:,} posts of "
            f"{identity.archive}; the run is not marked as finished: run the same command again, and if that "
            "does not help, with --restart"
        )
    failure = judge(counts, max_failed)
    manifest = {
        **facts,
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
        "failure": failure,
        **counts.summary(),
        "files": [
            {
                "name": entry.uri.removeprefix(output.rstrip("/") + "/"),
                "rows": part.rows,
                "bytes": entry.size,
            }
            for entry, part in zip(files, parts, strict=True)
        ],
    }
    storage.write_text(storage.join(output, MANIFEST_FILE), json.dumps(manifest, indent=2) + "\n")
    if failure:
        raise RunError(
            f"{failure}; all rows are tagged and lie in {output}, but the run is not marked as finished: accept it "
            "with a higher --max-failed, or tag again what failed for a passing reason with "
            f"--retry-failed {output}"
        )
    storage.write_bytes(storage.join(output, SUCCESS_FILE), b"")
    tidy(output)
    return manifest


def tidy(output: str) -> None:
    """Remove what a finished run needs no more: to DuckDB's `**` the ids are files like any other.

    Raises:
        StorageError: the output cannot be written.
    """
    storage.delete_directory(storage.join(output, CHECKPOINT_FOLDER))


def judge(counts: TagCounts, max_failed: float) -> str | None:
    """Why a complete run counts as failed, with the reasons counted, or None."""
    asked = sum(counts.image_status.values()) - counts.image_status["none"]
    failed = asked - counts.image_status["ok"]
    reasons = ", ".join(f"{count:,} x {reason}" for reason, count in counts.reasons.most_common(5))
    if asked and failed / asked > max_failed:
        share = f"{failed / asked:.1%}"
        return f"{failed:,} of {asked:,} pictures failed ({share}, more than {max_failed:.1%}): {reasons}"
    if counts.rows and counts.untagged / counts.rows > max_failed:
        return (
            f"the model could not tag {counts.untagged:,} of {counts.rows:,} posts "
            f"({counts.untagged / counts.rows:.1%}, more than {max_failed:.1%}): {reasons}"
        )
    return None
