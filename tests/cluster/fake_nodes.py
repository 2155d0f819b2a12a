"""The node types of cluster/aws.yaml as processes of this machine, under Ray's own autoscaler."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import yaml
from ray._raylet import GcsClient
from ray.autoscaler._private.fake_multi_node.node_provider import (
    FAKE_HEAD_NODE_ID,
    FAKE_HEAD_NODE_TYPE,
    FakeMultiNodeProvider,
)
from ray.core.generated.gcs_pb2 import GcsNodeInfo

from tests.cluster.filled import fill
from tests.cluster.heads import STORE_BYTES, drain, head


class FakeCloud(FakeMultiNodeProvider):
    """Ray's fake nodes, with an object store that several of them leave room for."""

    def create_node_with_resources_and_labels(
        self,
        node_config: dict[str, Any],
        tags: dict[str, str],
        count: int,
        resources: dict[str, float],
        labels: dict[str, str],
    ) -> None:
        resources = {**resources, "object_store_memory": STORE_BYTES}
        super().create_node_with_resources_and_labels(node_config, tags, count, resources, labels)


@contextmanager
def autoscaling_cluster(folder: Path, *, idle_seconds: float = 6) -> Iterator[str]:
    """The address of a head with 0 CPUs, whose cluster grows by the types of cluster/aws.yaml and shrinks again."""

    def autoscaling(address: str) -> str:
        config = folder / "autoscaling.yaml"
        config.write_text(yaml.safe_dump(_fake_config(address, idle_seconds)))
        return f"--autoscaling-config={config}"

    environment = {
        "RAY_AUTH_MODE": "disabled",
        "RAY_FAKE_CLUSTER": "1",
        "PYTHONPATH": str(Path(__file__).parents[2]),  # for FakeCloud
        "RAY_enable_autoscaler_v2": "1",
        "AUTOSCALER_UPDATE_INTERVAL_S": "1",
        "RAY_CLOUD_INSTANCE_ID": FAKE_HEAD_NODE_ID,
        "RAY_OVERRIDE_NODE_ID_FOR_TESTING": FAKE_HEAD_NODE_ID,
    }
    with head(folder / "head.log", "--num-cpus=0", autoscaling, environment=environment) as running:
        yield running.address


def _fake_config(address: str, idle_seconds: float) -> dict[str, Any]:
    real = yaml.safe_load(fill("aws.yaml"))
    types = real["available_node_types"]
    types[FAKE_HEAD_NODE_TYPE] = types.pop(real["head_node_type"]) | {"max_workers": 0}
    for of_type in types.values():
        of_type["node_config"] = {}
    for machine in ("initialization_commands", "head_start_ray_commands", "worker_start_ray_commands"):
        real[machine] = []
    return {
        **real,
        "idle_timeout_minutes": idle_seconds / 60,
        "provider": {
            "type": "external",
            "module": f"{FakeCloud.__module__}.{FakeCloud.__name__}",
            "head_node_id": FAKE_HEAD_NODE_ID,
            "gcs_address": address,
            "use_node_id_as_ip": True,
            "disable_node_updaters": True,
            "disable_launch_config_check": True,
            "launch_multiple": True,
        },
        "head_node_type": FAKE_HEAD_NODE_TYPE,
        "available_node_types": types,
        "file_mounts": {},
        "auth": {},
        "docker": {},
    }


def reclaim(address: str, seconds: int) -> dict[str, str]:
    """What happens to spot machines: notice, and after it every node but the head is gone. Returns them as `nodes`."""
    reclaimed = nodes(address)
    for node in reclaimed:
        drain(address, node, seconds)
    time.sleep(seconds)
    for process in psutil.process_iter(["cmdline"]):
        arguments = process.info["cmdline"] or []
        of_node = any(f"--node_id={node}" in arguments for node in reclaimed)
        if of_node and f"--gcs-address={address}" in arguments:
            process.kill()  # its workers go with it; a node that had nothing to do is gone already
    return reclaimed


def nodes(address: str) -> dict[str, str]:
    """Id and type of the nodes that are alive, the head left out."""
    known = GcsClient(address=address).get_all_node_info(timeout=30).values()
    alive = {node.node_id.hex(): node.node_type_name for node in known if node.state == GcsNodeInfo.ALIVE}
    return {node: kind for node, kind in alive.items() if kind not in ("", FAKE_HEAD_NODE_TYPE)}
