"""One actor a tagging run: it keeps a second job out of the same output, and hears how busy the model is."""

import hashlib
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from mnerqg.errors import RunError
from mnerqg.io import storage

_NAMESPACE = "mnerqg"
_TAKEN_WAIT_S = 30


class Monitor:
    """The actor. It lives as long as the driver: nothing of it has to be cleaned up after a death."""

    def __init__(self) -> None:
        self._actors: dict[str, tuple[float, float]] = {}

    def report(self, actor: str, busy_s: float, ready_s: float) -> None:
        """Seconds in the model and seconds since it was ready of a model actor, from its start."""
        self._actors[actor] = (busy_s, ready_s)

    def totals(self) -> tuple[float, float]:
        """Seconds in the model and seconds ready, of all model actors together."""
        busy = sum(busy_s for busy_s, _ in self._actors.values())
        return busy, sum(ready_s for _, ready_s in self._actors.values())


class Report:
    """What a model actor calls; the answer is not waited for."""

    def __init__(self, monitor: Any) -> None:
        self._monitor = monitor

    def __call__(self, busy_s: float, ready_s: float) -> None:
        actor = ray.get_runtime_context().get_actor_id() or ""
        self._monitor.report.remote(actor, busy_s, ready_s)


@contextmanager
def only_run(output: str) -> Iterator[Any]:
    """The monitor of the one run of this cluster that may write to `output`.

    Raises:
        RunError: another job of the cluster is writing there.
    """
    name = f"tagging-{hashlib.sha256(storage.path_of(output).rstrip('/').encode()).hexdigest()[:24]}"
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    options = ray.remote(Monitor).options(
        name=name, namespace=_NAMESPACE, num_cpus=0, max_restarts=-1, scheduling_strategy=here
    )
    monitor = _create(options, output)
    try:
        yield monitor
    finally:
        ray.kill(monitor)


def _create(options: Any, output: str) -> Any:
    deadline = time.monotonic() + _TAKEN_WAIT_S
    while True:
        try:
            return options.remote()
        except ValueError:  # the name is taken; for a moment also by a job that has just died
            if time.monotonic() > deadline:
                raise RunError(
                    f"another job of this cluster is tagging into {output}; wait for it, or stop it with "
                    "`ray job stop`"
                ) from None
            time.sleep(1)
