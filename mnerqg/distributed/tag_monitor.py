"""An actor of a tagging run that hears from the model actors how busy the model is."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy


class Monitor:
    """The actor. It ends with the driver: nothing of it has to be cleaned up after a death."""

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
def started_monitor() -> Iterator[Any]:
    """A monitor on the driver's own node, for as long as the `with` block lasts."""
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    monitor = ray.remote(Monitor).options(num_cpus=0, max_restarts=-1, scheduling_strategy=here).remote()
    try:
        yield monitor
    finally:
        ray.kill(monitor)
