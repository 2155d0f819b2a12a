"""The cluster, asked for when everything that needs none has been found to be right."""

import ray


def connect() -> None:
    """Join the cluster that `RAY_ADDRESS` names, or start one on this machine; a process that has one keeps it."""
    if not ray.is_initialized():
        ray.init()
