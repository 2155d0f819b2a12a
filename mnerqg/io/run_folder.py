"""A folder that one run writes, in however many tries: the tags of an archive, a training, the labels of a dataset.

A run file says what was asked for. The same command goes on with what lies there; a command that asks for anything else
is refused with the first difference, and so is a folder that holds anything but a run. Who writes has the lock.
"""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from mnerqg.errors import RunError, StorageError, one_line
from mnerqg.io import storage
from mnerqg.io.lock import LOCK_FILE, locked

RUN_FILE = "_run.json"
_SHOWN_CHARACTERS = 80


@dataclass(frozen=True)
class RunFolder:
    """The folder of one run.

    Attributes:
        uri: of the folder.
        kind: what is written there, in words, such as "tagging run".
        option: the option of the command that named the folder.
        run_file: name of the file that says what was asked for (`asked`, JSON), from the start on.
        result_file: name of the file that says what came of it; None where that is left to the run.
        mark: name of the file that is there if and only if the run is finished, written last; the result's or another.
        restartable: whether the command has --restart.
    """

    uri: str
    kind: str
    option: str = "--output"
    run_file: str = RUN_FILE
    result_file: str | None = None
    mark: str | None = None
    restartable: bool = False

    def begun(self) -> dict[str, Any] | None:
        """What the run file says; None where there is none.

        Raises:
            StorageError: it cannot be read, or is damaged.
        """
        uri = storage.join(self.uri, self.run_file)
        if not storage.exists(uri):
            return None
        run = self._read(uri)
        if not isinstance(run.get("asked"), dict):
            raise self._damaged(uri)
        return run

    def result(self) -> dict[str, Any] | None:
        """What came of the run; None where it is not finished. Raises StorageError as `begun`."""
        if (
            self.mark is None
            or self.result_file is None
            or not storage.exists(storage.join(self.uri, self.mark))
        ):
            return None
        return self._read(storage.join(self.uri, self.result_file))

    def check(self, asked: Mapping[str, Any], *, restart: bool = False) -> bool:
        """Whether the run that was asked for has begun here; changes nothing.

        Args:
            asked: what decides what is written: JSON values, compared key by key.
            restart: another run may have begun here, if it is not finished.

        Raises:
            StorageError: another run has begun here, or the folder holds files of none; or `restart` is asked for and
                the run is finished.
        """
        run = self.begun()
        if run is None:
            if storage.exists(self.uri) and storage.list_files(self.uri):
                raise StorageError(
                    f"{self.option} {self.uri} holds files of no {self.kind}; choose an empty or new folder"
                )
            return False
        finished = self.result() is not None
        if restart and finished:
            raise StorageError(
                f"{self.option} {self.uri} holds a finished {self.kind}, which --restart never touches; "
                "choose another folder"
            )
        difference = None if restart else _first_difference(run["asked"], _as_json(asked))
        if difference is not None:
            start_over = ", or start over with --restart" if self.restartable and not finished else ""
            raise StorageError(
                f"{self.option} {self.uri} holds another {self.kind} ({difference}); give the same settings, or "
                f"another folder{start_over}"
            )
        return True

    @contextmanager
    def writing(
        self, asked: Mapping[str, Any], notes: Mapping[str, Any] | None = None, *, restart: bool = False
    ) -> Iterator[dict[str, Any]]:
        """The right to write here, for the `with` block, which gets what the run file says.

        The run begins, with `notes` in its run file that are not compared, or goes on, or starts over. Whether it is
        finished is to be asked within the block: another job may have done that while this one waited for the lock.

        Raises:
            RunError: another job is writing here, or the store failed within the block.
            StorageError: as of `check`, or the folder cannot be written.
        """
        with locked(self.uri):
            begun = self.check(asked, restart=restart)
            if begun and restart:
                storage.delete_directory(self.uri, keep=LOCK_FILE)
            if restart or not begun:
                self._write(self.run_file, {**(notes or {}), "asked": _as_json(asked)})
            run = self.begun()
            assert run is not None
            try:
                yield run
            except StorageError as error:
                # It was right to begin: what fails from here on is no fault of the command.
                raise RunError(str(error)) from error

    def finish(self, result: Mapping[str, Any], *, failed: bool = False) -> None:
        """Write down what came of the run and, unless it has failed, mark it as finished. Raises StorageError."""
        assert self.result_file is not None
        assert self.mark is not None
        self._write(self.result_file, result)
        if not failed and self.mark != self.result_file:
            storage.write_text(storage.join(self.uri, self.mark), "")

    def _write(self, name: str, content: Mapping[str, Any]) -> None:
        storage.write_text(storage.join(self.uri, name), json.dumps(content, indent=2) + "\n")

    def _read(self, uri: str) -> dict[str, Any]:
        try:
            return dict(json.loads(storage.read_text(uri)))
        except (ValueError, TypeError):
            raise self._damaged(uri) from None

    def _damaged(self, uri: str) -> StorageError:
        return StorageError(
            f"{uri} is damaged, or of another version of this software; restore it, or choose another folder"
        )


def _as_json(value: Mapping[str, Any]) -> dict[str, Any]:
    """As it comes back from a file, where tuples are lists."""
    return dict(json.loads(json.dumps(value)))


def _first_difference(there: Any, now: Any, path: str = "") -> str | None:
    """The key, as in `--section.key`, and both values."""
    if isinstance(there, dict) and isinstance(now, dict):
        pairs = [(key, there.get(key), now.get(key)) for key in {**now, **there}]
    elif isinstance(there, list) and isinstance(now, list) and len(there) == len(now):
        pairs = [(place, *pair) for place, pair in enumerate(zip(there, now, strict=True))]
    elif there != now:
        return f"{path}: {_shown(there)} there, {_shown(now)} now"
    else:
        return None
    found = (_first_difference(old, new, f"{path}.{key}" if path else str(key)) for key, old, new in pairs)
    return next((difference for difference in found if difference is not None), None)


def _shown(value: Any) -> str:
    return one_line(value if isinstance(value, str) and value else json.dumps(value), _SHOWN_CHARACTERS)
