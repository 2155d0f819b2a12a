"""What waits in a pipeline is bounded by the cluster, not by the archive."""

import time
from typing import Any, ClassVar

import pyarrow as pa
import pytest
import ray
import ray.data
from ray.data._internal.execution.backpressure_policy import ENABLED_BACKPRESSURE_POLICIES_CONFIG_KEY
from ray.data._internal.execution.interfaces import PhysicalOperator

from mnerqg.distributed.short_queues import ShortQueues, bound_queues

ROWS = 4000
ROWS_A_BLOCK = 10


class Watched(ShortQueues):
    """Also keeps the most CPUs that tasks had, and the most blocks that waited."""

    cpus: ClassVar[float] = 0
    waited: ClassVar[int] = 0

    def can_add_input(self, op: PhysicalOperator) -> bool:
        taken = sum(one.num_active_tasks() * one.incremental_resource_usage().cpu for one in self._topology)
        Watched.cpus = max(Watched.cpus, taken)
        waiting = [self._waiting(one) for one in self._topology if "MapBatches" in one.name]
        Watched.waited = max(Watched.waited, *waiting)
        return super().can_add_input(op)


class Slow:
    """An actor that its input piles up before."""

    def __call__(self, rows: pa.Table) -> pa.Table:
        time.sleep(0.02)
        return rows


def first(rows: pa.Table) -> pa.Table:
    return rows


@pytest.mark.parametrize("reserved", [True, False])
def test_what_waits_is_bounded(ray_cluster: None, reserved: bool) -> None:
    """Without the policy, tasks of 400 CPUs wait where none are reserved.

    Where they are, Ray keeps within 4 by itself for these blocks; there the policy must only not stand in the way.
    """
    Watched.cpus, Watched.waited = 0, 0
    context = ray.data.DataContext.get_current().copy()
    context.op_resource_reservation_enabled = reserved
    bound_queues(context)
    policies: list[Any] = context.get_config(ENABLED_BACKPRESSURE_POLICIES_CONFIG_KEY)
    assert policies[-1] is ShortQueues
    context.set_config(ENABLED_BACKPRESSURE_POLICIES_CONFIG_KEY, [*policies[:-1], Watched])
    with ray.data.DataContext.current(context):
        rows = ray.data.range(ROWS, override_num_blocks=ROWS // ROWS_A_BLOCK)
        rows = rows.map_batches(first, batch_format="pyarrow", batch_size=None, num_cpus=0.5)
        rows = rows.map_batches(
            Slow, batch_format="pyarrow", compute=ray.data.ActorPoolStrategy(size=1), num_cpus=0.5
        )
        ids = sorted(row["id"] for row in rows.iter_rows())
    assert ids == list(range(ROWS))
    cpus = ray.cluster_resources()["CPU"]
    assert 0 < Watched.cpus <= cpus
    assert 0 < Watched.waited <= 4 * cpus
