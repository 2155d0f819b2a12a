"""The node types of cluster/aws.yaml as processes of this machine, under Ray's own autoscaler."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import yaml
from ray._private.services import get_node_ip_address
from ray.autoscaler._private.fake_multi_node.node_provider import (
    FAKE_HEAD_NODE_ID,
    FAKE_HEAD_NODE_TYPE,
    FakeMultiNodeProvider,
)
from ray.autoscaler.node_launch_exception import NodeLaunchException
from ray.autoscaler.tags import TAG_RAY_USER_NODE_TYPE

from tests.cluster.filled import fill

SCARCE = "MNERQG_TEST_SCARCE"
"""The environment variable with the node types, comma-separated, of which the cloud has none."""
STORE_BYTES = 100_000_000


class FakeCloud(FakeMultiNodeProvider):
    """Fake nodes, but for the types that are not to be had."""

    def create_node_with_resources_and_labels(
        self,
        node_config: dict[str, Any],
        tags: dict[str, str],
        count: int,
        resources: dict[str, float],
        labels: dict[str, str],
    ) -> None:
        if tags[TAG_RAY_USER_NODE_TYPE] in os.environ.get(SCARCE, "").split(","):
            raise NodeLaunchException("InsufficientInstanceCapacity", "none on the spot market", None)
        resources = {**resources, "object_store_memory": STORE_BYTES}
        super().create_node_with_resources_and_labels(node_config, tags, count, resources, labels)


@contextmanager
def autoscaling_cluster(
    folder: Path, *, scarce: tuple[str, ...] = (), idle_seconds: float = 6, **environment: str
) -> Iterator[str]:
    """The address of a head with 0 CPUs, whose cluster grows by the types of cluster/aws.yaml and shrinks again."""
    port = _free_port()
    address = f"{get_node_ip_address()}:{port}"
    config = folder / "autoscaling.yaml"
    config.write_text(yaml.safe_dump(_fake_config(address, idle_seconds)))
    command = [sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block", f"--port={port}"]
    command += ["--num-cpus=0", f"--object-store-memory={STORE_BYTES}", f"--autoscaling-config={config}"]
    command += [f"--dashboard-port={_free_port()}", f"--ray-client-server-port={_free_port()}"]
    variables = {
        "RAY_AUTH_MODE": "disabled",
        "RAY_FAKE_CLUSTER": "1",
        "RAY_enable_autoscaler_v2": "1",
        "AUTOSCALER_UPDATE_INTERVAL_S": "1",
        "RAY_CLOUD_INSTANCE_ID": FAKE_HEAD_NODE_ID,
        "RAY_OVERRIDE_NODE_ID_FOR_TESTING": FAKE_HEAD_NODE_ID,
        SCARCE: ",".join(scarce),
        **environment,
    }
    with (folder / "head.log").open("wb") as log:
        head = subprocess.Popen(
            command,
            env={**os.environ, **variables},
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        wait_until(lambda: head.poll() is not None or _listens(port), 60)
        assert head.poll() is None, (folder / "head.log").read_text()[-3000:]
        yield address
    finally:
        head.send_signal(signal.SIGTERM)  # the head ends the nodes that it has started
        try:
            head.wait(timeout=30)
        finally:
            _kill_group(head.pid)


def _fake_config(address: str, idle_seconds: float) -> dict[str, Any]:
    real = yaml.safe_load(fill("aws.yaml"))
    types = real["available_node_types"]
    types[FAKE_HEAD_NODE_TYPE] = types.pop(real["head_node_type"]) | {"max_workers": 0}
    for of_type in types.values():
        of_type["node_config"] = {}
    return {
        "cluster_name": real["cluster_name"],
        "max_workers": real["max_workers"],
        "upscaling_speed": real["upscaling_speed"],
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
        "initialization_commands": [],
        "setup_commands": [],
        "head_setup_commands": [],
        "worker_setup_commands": [],
        "head_start_ray_commands": [],
        "worker_start_ray_commands": [],
        "file_mounts": {},
        "cluster_synced_files": [],
        "file_mounts_sync_continuously": False,
        "auth": {},
        "docker": {},
    }


def node_types(address: str) -> list[str]:
    """The types of the nodes that are alive, the head left out, sorted."""
    script = (
        "import json, ray; ray.init(address='auto', logging_level='ERROR'); "
        "print(json.dumps([node['Labels'] for node in ray.nodes() if node['Alive']]))"
    )
    environment = {**os.environ, "RAY_ADDRESS": address, "RAY_AUTH_MODE": "disabled"}
    printed = subprocess.run(
        [sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True
    ).stdout
    labels = json.loads(printed.splitlines()[-1])
    found = [label.get("ray.io/node-group") for label in labels]  # the head has none
    return sorted(kind for kind in found if kind not in (None, FAKE_HEAD_NODE_TYPE))


def wait_until(happened: Callable[[], object], seconds: float) -> None:
    """Raises AssertionError where it has not happened by then."""
    deadline = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < deadline, f"not within {seconds} s"
        time.sleep(0.3)


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("", 0))
        return int(free.getsockname()[1])


def _listens(port: int) -> bool:
    with socket.socket() as client:
        return client.connect_ex((get_node_ip_address(), port)) == 0


def _kill_group(pid: int) -> None:
    with suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)
