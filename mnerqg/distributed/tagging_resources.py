"""What the stages of bulk tagging take of a cluster, and whether it has that."""

from dataclasses import dataclass

from mnerqg.config_jobs import TagConfig
from mnerqg.errors import ConfigError

_SMALL_CLUSTER_CPUS = 4
_BLOCK_BYTES = 32 * 2**20
_BLOCKS_IN_STORE = 32
"""Measured with a store of 300 MB: 151 rows/s with blocks of 32 MiB, which spill, 392 with 8 MiB."""


@dataclass(frozen=True)
class Resources:
    """What the stages take of the cluster; a `small` one has so few CPUs that none may idle, and does not grow."""

    small: bool
    min_actors: int
    max_actors: int
    gpus_per_actor: float
    cpus_per_actor: float
    threads_per_actor: int
    cpus_per_task: float
    block_bytes: int
    cluster_cpus: float
    cluster_gpus: float
    cluster_store_bytes: float


def plan_resources(config: TagConfig, cluster: dict[str, float]) -> Resources:
    """Fill in what the configuration leaves open.

    Args:
        config: settings of the run.
        cluster: totals as `ray.cluster_resources` gives them.

    Raises:
        ConfigError: not enough CPUs or GPUs for the smallest number of actors and one task beside them, or an
            object store too small for the blocks.
    """
    cpus, gpus = cluster.get("CPU", 0.0), cluster.get("GPU", 0.0)
    store = cluster.get("object_store_memory", float(_BLOCK_BYTES * _BLOCKS_IN_STORE))
    small = cpus <= _SMALL_CLUSTER_CPUS and not config.autoscaling
    half_cpus = cpus <= 2 and not config.autoscaling
    gpus_per_actor = (1.0 if gpus else 0.0) if config.gpus_per_actor is None else config.gpus_per_actor
    cpus_per_actor = config.cpus_per_actor or (0.5 if half_cpus else 1.0)
    if isinstance(config.actors, tuple):
        min_actors, max_actors = config.actors
    elif config.actors is not None:
        min_actors = max_actors = config.actors
    else:
        min_actors = 1
        max_actors = max(1, int(gpus / gpus_per_actor if gpus_per_actor else cpus / 2 / cpus_per_actor))
        if not gpus_per_actor and small:
            max_actors = 1  # one actor with all threads does as much as several, in less memory
    threads = max(1, int(cpus_per_actor))
    if not gpus_per_actor and small:
        threads = max(1, int(cpus / max_actors))
    resources = Resources(
        small=small,
        min_actors=min_actors,
        max_actors=max_actors,
        gpus_per_actor=gpus_per_actor,
        cpus_per_actor=cpus_per_actor,
        threads_per_actor=config.threads_per_actor or threads,
        cpus_per_task=0.5 if half_cpus else 1.0,
        block_bytes=config.block_bytes or max(2**20, min(_BLOCK_BYTES, int(store / _BLOCKS_IN_STORE))),
        cluster_cpus=cpus,
        cluster_gpus=gpus,
        cluster_store_bytes=store,
    )
    if not config.autoscaling:
        _check(resources)
    return resources


def _check(resources: Resources) -> None:
    """Without a CPU beside the actors nothing would be read, and the run would wait for ever."""
    # Ray's own tasks (listing files, cutting blocks) take a whole CPU, whatever ours take.
    needed = resources.min_actors * resources.cpus_per_actor + 1
    if needed > resources.cluster_cpus:
        raise ConfigError(
            f"the cluster has {resources.cluster_cpus:g} CPUs, but {resources.min_actors} actor(s) with "
            f"{resources.cpus_per_actor:g} each and a task beside them take {needed:g}; lower --actors or "
            "--cpus_per_actor, add nodes, or set --autoscaling true where the cluster grows by itself"
        )
    needed_gpus = resources.min_actors * resources.gpus_per_actor
    if needed_gpus > resources.cluster_gpus:
        raise ConfigError(
            f"the cluster has {resources.cluster_gpus:g} GPUs, but {resources.min_actors} actor(s) take "
            f"{needed_gpus:g}; lower --actors or --gpus_per_actor (0 tags on CPUs), or set --autoscaling true"
        )
    store, blocks = resources.cluster_store_bytes, 4 * resources.block_bytes
    if blocks > store:
        raise ConfigError(
            f"the cluster's object store holds {store / 2**20:,.0f} MiB, but four blocks of {blocks // 4 / 2**20:,.0f}"
            " MiB must fit into it; lower --block_bytes or give Ray more (ray start --object-store-memory)"
        )
