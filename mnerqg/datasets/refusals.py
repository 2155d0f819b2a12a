"""What an import does not take over: faults, which end it and are told at once, and what is left out and counted."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Generic, NoReturn, TypeVar

from mnerqg.errors import DataError

DATASET_FORMAT = "mnerqg-dataset"
"""What `summary.json` says of itself: the directory is a prepared dataset."""

_PLACES = 9  # so many are named after the first complaint
_SHOWN = 80  # characters of a faulty value


# ---- faults ---------------------------------------------------------------------------------------------


def refuse_line(path: Path, number: int, value: str, complaint: str) -> NoReturn:
    """Raise the DataError of a faulty line: "file:line: 'value' complaint", the value cut where it is long."""
    shown = value if len(value) <= _SHOWN else f"{value[:_SHOWN]}…"
    raise DataError(f"{path}:{number}: {shown!r} {complaint}")


class ReleaseError(DataError):
    """What is wrong with a release: the first complaint in full, of the others the places with which they begin."""

    def __init__(self, complaints: Sequence[str]) -> None:
        first, *others = complaints
        self.complaints = complaints
        # The name of the file and the line; the first complaint shows the directory.
        places = [Path(other.partition(": ")[0]).name for other in others[:_PLACES]]
        places += ["…"] if len(others) > _PLACES else []
        super().__init__(f"{first} (and {len(others)} more: {', '.join(places)})" if others else first)


class Refusals:
    """Collects what is wrong with a release, so that one import tells all of it, and not one fault each."""

    def __init__(self) -> None:
        self._complaints: dict[str, None] = {}  # in order; what several splits complain of is told once

    @contextmanager
    def collect(self) -> Iterator[None]:
        """Keep the DataError that the block raises, and go on after the block."""
        try:
            yield
        except ReleaseError as error:
            self._complaints |= dict.fromkeys(error.complaints)
        except DataError as error:
            self._complaints[str(error)] = None

    def raise_collected(self) -> None:
        """Do nothing where nothing was collected.

        Raises:
            ReleaseError: with all that was.
        """
        if self._complaints:
            raise ReleaseError(tuple(self._complaints))


# ---- figures --------------------------------------------------------------------------------------------


@dataclass
class SplitFigures:
    """What every importer counts in a split, filled while its posts are read."""

    posts: int = 0
    pictures_found: int = 0  # posts with a picture that decodes; likewise the next two
    pictures_missing: int = 0
    pictures_unreadable: int = 0
    size_mismatch: int = 0  # pictures whose XML states another size than the upright picture has
    picture_problems: list[str] = field(default_factory=list)  # "file: what is wrong"

    def to_dict(self) -> dict[str, Any]:
        """The figures as JSON values."""
        return asdict(self)


Figures = TypeVar("Figures", bound=SplitFigures)


@dataclass
class DatasetSummary(Generic[Figures]):
    """What an import wrote: its layout, figures a split, and the splits of the release that were not there."""

    source: str
    splits: dict[str, Figures]
    absent_splits: list[str]

    def to_dict(self) -> dict[str, Any]:
        """The content of `summary.json`."""
        return {
            "format": DATASET_FORMAT,
            "source": self.source,
            "absent_splits": self.absent_splits,
            "splits": {split: figures.to_dict() for split, figures in self.splits.items()},
        }
