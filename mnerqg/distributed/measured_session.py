"""What a Ray session says of a run that is measured: processes, what it spilled and lost, what its models did."""

import os
import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import ray
from ray._private.internal_api import get_memory_info_reply, get_state_from_address
from ray.core.generated.common_pb2 import WorkerExitType
from ray.core.generated.gcs_pb2 import WorkerTableData
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from mnerqg.benchmark.rounds import Work

_LOST = {
    WorkerExitType.NODE_OUT_OF_MEMORY: "for memory",
    WorkerExitType.SYSTEM_ERROR: "or ended by themselves",
}


# ---- processes ------------------------------------------------------------------------------------------


def raylets_here() -> set[int]:
    """The process ids of the session's raylets on this machine; workers are their children."""
    alive = [node["NodeID"] for node in ray.nodes() if node["Alive"]]
    asked = ray.remote(_host_and_parent)
    answers = ray.get(
        [
            asked.options(
                num_cpus=0, scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False)
            ).remote()
            for node in alive
        ]
    )
    return {parent for host, parent in answers if host == socket.gethostname()}


def _host_and_parent() -> tuple[str, int]:
    return socket.gethostname(), os.getppid()


# ---- faults ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Faults:
    """What must not happen in a run that is measured, counted since the session's beginning."""

    spilled_bytes: int
    lost: dict[str, int]

    def since(self, before: "Faults") -> "Faults":
        """What has been added."""
        lost = {how: count - before.lost.get(how, 0) for how, count in self.lost.items()}
        return Faults(
            self.spilled_bytes - before.spilled_bytes, {how: count for how, count in lost.items() if count}
        )

    def in_words(self) -> list[str]:
        """A line for each kind; none where all went well."""
        lines = [f"{count} process(es) of Ray were killed {how}" for how, count in self.lost.items()]
        if self.spilled_bytes:
            lines.append(
                f"Ray spilled {self.spilled_bytes:,} bytes; give it a larger object store, or lower --block_bytes"
            )
        return lines


def session_faults() -> Faults:
    """Those of all nodes of the session until now."""
    state = get_state_from_address(ray.get_runtime_context().gcs_address)
    spilled = get_memory_info_reply(state).store_stats.spilled_bytes_total
    lost: dict[str, int] = {}
    for row in state._connect_and_get_accessor().get_worker_table():
        worker = WorkerTableData.FromString(row)
        if not worker.is_alive and worker.exit_type in _LOST:
            how = _LOST[worker.exit_type]
            lost[how] = lost.get(how, 0) + 1
    return Faults(int(spilled), lost)


# ---- what the models do ---------------------------------------------------------------------------------


class _Book:
    """An actor that is told of every batch of every model."""

    def __init__(self) -> None:
        self._work: list[tuple[str, Work]] = []

    def add(self, actor: str, work: Work) -> None:
        self._work.append((actor, work))

    def read(self) -> list[tuple[str, Work]]:
        return self._work


class Tell:
    """What a model calls after a batch; the answer is not waited for. Pickles."""

    def __init__(self, book: Any) -> None:
        self._book = book

    def __call__(self, work: Work) -> None:
        self._book.add.remote(ray.get_runtime_context().get_actor_id() or "", work)


@contextmanager
def open_book() -> Iterator[Any]:
    """The actor, on the driver's own node, for as long as the `with` block lasts."""
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    book = ray.remote(_Book).options(num_cpus=0, scheduling_strategy=here).remote()
    try:
        yield book
    finally:
        ray.kill(book)


def read_book(book: Any, posts: int) -> list[tuple[str, Work]]:
    """The last batches of all, as many as `posts` posts are: what comes before them is the warm-up of the models."""
    work: list[tuple[str, Work]] = sorted(ray.get(book.read.remote()), key=lambda entry: -entry[1].ended)
    taken, so_far = [], 0
    for entry in work:
        if so_far >= posts:
            break
        taken.append(entry)
        so_far += entry[1].posts
    return taken[::-1]


def pace_together(work: Sequence[tuple[str, Work]]) -> float | None:
    """Posts a second from when every model has answered its first batch until one of them has answered its last."""
    own = [[one.ended for name, one in work if name == actor] for actor in {name for name, _ in work}]
    start = max((min(ended) for ended in own), default=0.0)
    stop = min((max(ended) for ended in own), default=0.0)
    posts = sum(one.posts for _, one in work if start < one.ended <= stop)
    return posts / (stop - start) if stop > start else None


def device_busy(work: Sequence[tuple[str, Work]]) -> float | None:
    """The share of the time that the models' devices worked, between each one's first batch and its last."""
    span = 0.0
    for actor in {name for name, _ in work}:
        own = [entry for name, entry in work if name == actor]
        span += max(one.ended for one in own) - min(one.began for one in own)
    return min(1.0, sum(one.device_s for _, one in work) / span) if span > 0 else None
