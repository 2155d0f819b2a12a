"""An actor of a tagging run that hears from the model actors how far they are and how busy the model is."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy


@dataclass(frozen=True)
class ActorReport:
    """What a model actor has done since its start.

    Attributes:
        busy_s: seconds in the model.
        ready_s: seconds since it was ready.
        start_s: seconds that it had taken to be ready.
        batch_posts: posts that its model sees at once.
        posts, failed: tagged, and those of them with an error.
    """

    busy_s: float
    ready_s: float
    start_s: float
    batch_posts: int
    posts: int
    failed: int


class Monitor:
    """The actor. It ends with the driver: nothing of it has to be cleaned up after a death."""

    def __init__(self) -> None:
        self._actors: dict[str, ActorReport] = {}

    def report(self, actor: str, report: ActorReport) -> None:
        """The newest report of a model actor."""
        self._actors[actor] = report

    def totals(self) -> tuple[float, float]:
        """Seconds in the model and seconds ready, of all model actors together."""
        reports = self._actors.values()
        return sum(one.busy_s for one in reports), sum(one.ready_s for one in reports)

    def starts(self) -> dict[str, Any]:
        """The longest start of a model actor, None where none has reported, and what sizes of batches they have."""
        reports = self._actors.values()
        return {
            "model_start_s": round(max(one.start_s for one in reports), 1) if reports else None,
            "batch_posts": sorted({one.batch_posts for one in reports}),
        }

    def counted(self) -> tuple[int, int]:
        """Posts tagged and those with an error, of all model actors together."""
        reports = self._actors.values()
        return sum(one.posts for one in reports), sum(one.failed for one in reports)


class Report:
    """What a model actor calls; the answer is not waited for."""

    def __init__(self, monitor: Any) -> None:
        self._monitor = monitor

    def __call__(self, report: ActorReport) -> None:
        actor = ray.get_runtime_context().get_actor_id() or ""
        self._monitor.report.remote(actor, report)


@contextmanager
def started_monitor() -> Iterator[Any]:
    """A monitor on the driver's own node, for as long as the `with` block lasts."""
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    monitor = ray.remote(Monitor).options(num_cpus=0, max_restarts=-1, scheduling_strategy=here).remote()
    try:
        yield monitor
    finally:
        ray.kill(monitor)
