"""The Ray session of a job, and how much Ray says in its log.

By itself Ray prints tables of its stages every ten seconds, in every healthy run warnings that nobody can act on, and
of an actor that fails a traceback from each place that hears of it. Here a cause is one line, once.
"""

import logging
import os
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import ray
import ray._private.worker
import ray.data
from ray.util.annotations import RayDeprecationWarning

from mnerqg.distributed.failures import first_cause
from mnerqg.errors import one_line

_DATA_ACTOR = "SplitCoordinator"
# What C++ says of the level that we ask of it.
_LEVEL_IS_SET = "Set ray log level from environment variable"
_AUTHENTICATION_LOGGER = "ray._private.authentication.authentication_token_setup"
IDLE_WORKERS = ("RAY_num_workers_soft_limit", "64")
"""So many workers of a node stay where nothing is to be done for a second. Ray keeps one a CPU, but tasks that wait for
pictures take half a CPU each: again and again it ended some and started others, whose imports took an eighth of two
CPUs [measured]. Nodes read it when they start; those of a cluster have it from cluster/Dockerfile."""
# That a new local cluster asks for a token, which is Ray's default; and what we ask of Ray Data.
_MATTERS_OF_COURSE = (
    *("Token authentication is enabled", "Progress bars disabled"),
    "Specifying both num_cpus and num_gpus",
)


@dataclass
class _Manner:
    """How the session that `connect` begins speaks."""

    hushed: bool = False
    workers_speak: bool = True


_manner = _Manner()


def connect(*, dashboard: bool = False) -> None:
    """Join the cluster that `RAY_ADDRESS` names, or start one on this machine; a process that has one keeps it.

    Args:
        dashboard: whether one that is started here, and ends with the job, has the dashboard, which takes seconds to
            start. Ray Train asks it what its controller does, and warns every second where there is none.
    """
    if ray.is_initialized():
        return
    os.environ.setdefault(*IDLE_WORKERS)
    ray.init(
        logging_level=logging.WARNING if _manner.hushed else logging.INFO,
        log_to_driver=_manner.workers_speak or not _manner.hushed,
        include_dashboard=dashboard,
    )
    context = ray.data.DataContext.get_current()
    # Bars of every stage, or tables where there is no terminal.
    context.enable_progress_bars = not _manner.hushed
    if _manner.hushed:
        # It would warn every 30 s of actors that take more memory than Ray reserves, as each with a model does.
        context.issue_detectors_config.high_memory_detector_config.detection_time_interval_s = -1


def hush(*, workers_speak: bool = True) -> None:
    """From now on, and in the session that `connect` begins, Ray says only what a person can act on.

    Args:
        workers_speak: show what the workers print, each line with its worker.
    """
    _manner.hushed, _manner.workers_speak = True, workers_speak
    causes = Causes()
    logging.getLogger(_AUTHENTICATION_LOGGER).addFilter(_is_worth_a_line)
    for handler in logging.getLogger("ray.data").handlers:
        if isinstance(handler, logging.StreamHandler):
            handler.addFilter(_is_worth_a_line)
            handler.addFilter(causes.is_new)
            handler.setFormatter(_Briefly("%(asctime)s %(levelname)s %(message)s"))
    ray._private.worker.print_to_stdstream = causes.printer(ray._private.worker.print_to_stdstream)
    warnings.filterwarnings("ignore", category=RayDeprecationWarning)  # of Ray's own calls of itself
    # Ray's C++ writes errors to stderr, too, such as one about each of Ray Data's actors. A cluster that runs already
    # keeps its own level.
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")


def _is_worth_a_line(record: logging.LogRecord) -> bool:
    """Whether it is a warning: what Ray Data does is in the session's files, and what it logs as an error it raises."""
    return record.levelno == logging.WARNING and not record.getMessage().startswith(_MATTERS_OF_COURSE)


class _Briefly(logging.Formatter):
    """A record as one line, the cause in the place of a traceback and before all else."""

    def format(self, record: logging.LogRecord) -> str:
        cause = _cause(record)
        said = one_line(f"{cause} ({record.getMessage()})" if cause else record.getMessage())
        return f"{self.formatTime(record)} {record.levelname} {said}"


def _cause(record: logging.LogRecord) -> str | None:
    error = record.exc_info[1] if record.exc_info else None
    return None if error is None else first_cause(error)


class Causes:
    """The causes of failures that have been said already."""

    def __init__(self) -> None:
        self._said: set[str] = set()

    def is_new(self, record: logging.LogRecord) -> bool:
        """Whether a log record has no cause, or one that was not said before."""
        cause = _cause(record)
        return cause is None or self._first_time(cause)

    def printer(self, show: Callable[..., None]) -> Callable[..., None]:
        """`show`, which prints what workers and raylets say; of the latter each thing once, and of a traceback
        its last line.

        Ray Data in a training says what it does through an actor of its own, which is left out as it is in the driver.
        """

        def show_briefly(data: dict[str, Any], *arguments: Any, **options: Any) -> None:
            if str(data.get("actor_name")).startswith(_DATA_ACTOR):
                return
            lines = (
                [self._brief(line) for line in data["lines"]]
                if data.get("pid") == "raylet"
                else data["lines"]
            )
            lines = [line for line in lines if line is not None]
            if lines:
                show({**data, "lines": lines}, *arguments, **options)

        return show_briefly

    def _brief(self, text: str) -> str | None:
        if _LEVEL_IS_SET in text:
            return None
        if "Traceback (most recent call last)" not in text:
            return text if self._first_time(text) else None
        last = [line.strip() for line in text.splitlines() if line.strip()][-1]
        said = text.splitlines()[0].partition(" Error: Traceback")[0]
        return one_line(f"{last} ({said})") if self._first_time(last) else None

    def _first_time(self, cause: str) -> bool:
        is_new = cause not in self._said
        self._said.add(cause)
        return is_new
