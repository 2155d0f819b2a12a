"""Bounds the driver's memory, whatever the length of the archive."""

from ray.data import DataContext
from ray.data._internal.execution.backpressure_policy import (
    ENABLED_BACKPRESSURE_POLICIES,
    ENABLED_BACKPRESSURE_POLICIES_CONFIG_KEY,
)
from ray.data._internal.execution.backpressure_policy.backpressure_policy import BackpressurePolicy
from ray.data._internal.execution.interfaces import PhysicalOperator


class ShortQueues(BackpressurePolicy):
    """Not more tasks than the cluster has CPUs for, and between two stages about twice as many blocks as CPUs.

    Ray Data bounds what waits by its bytes in the object store. But a task that waits takes about 100 kB of the
    driver's own memory, and so does a block of short texts: up to 100 KiB, Ray keeps objects in the heap of their
    owner. Of an archive of text alone, all tasks would be submitted at once where no CPUs are reserved for each
    stage (seen: 451 tasks of one stage waiting, and the first file written only after the whole archive had been
    read), and half an object store of blocks be read ahead where they are.

    Where no CPUs are reserved, what the tasks under way put out comes on top of the blocks.
    """

    def can_add_input(self, op: PhysicalOperator) -> bool:
        """Whether Ray may submit one more task of the stage `op`."""
        cpus = op.incremental_resource_usage().cpu
        if not cpus:
            # A call of an actor takes no CPU of its own: Ray bounds how many calls of each actor are under way.
            return True
        taken = sum(
            other.num_active_tasks() * other.incremental_resource_usage().cpu for other in self._topology
        )
        # How many blocks a task puts out is only known once one of the stage has ended. Until then it is taken to be
        # so many that a single task fills the queue, and one task runs first.
        outputs = op.metrics.average_num_outputs_per_task or self._room()
        expected = self._waiting(op) + op.num_active_tasks() * outputs
        return taken + cpus <= self._cpus() and expected < self._room()

    def max_task_output_bytes_to_read(self, op: PhysicalOperator) -> int | None:
        """How much more Ray may take over of what the running tasks of the stage `op` put out; None is all of it.

        Where it takes over nothing (0), those tasks stand still at their next block until the queue behind them is
        shorter, and keep their CPUs meanwhile. So that is asked for only where Ray reserves CPUs for each stage:
        elsewhere they could be the CPUs that the next stage needs to shorten the queue, and both would wait for ever.
        """
        reserved = self._data_context.op_resource_reservation_enabled
        return 0 if reserved and self._waiting(op) >= self._room() else None

    def _waiting(self, op: PhysicalOperator) -> int:
        """Blocks that `op` has put out and the next stage has not taken."""
        return int(self._topology[op].output_queue.num_blocks)

    def _room(self) -> float:
        """Blocks that may wait between two stages."""
        return 2 * self._cpus()

    def _cpus(self) -> float:
        return max(1.0, self._resource_manager.get_global_limits().cpu)


def bound_queues(context: DataContext) -> None:
    """Add the policy to Ray's own."""
    policies = [*ENABLED_BACKPRESSURE_POLICIES, ShortQueues]
    context.set_config(ENABLED_BACKPRESSURE_POLICIES_CONFIG_KEY, policies)
    if not context.op_resource_reservation_enabled:
        # Ray's own policy of this name makes tasks stand still with their CPUs, too (see above).
        context.downstream_capacity_backpressure_ratio = None
