"""Tell Ray that this machine is about to be taken away, so that nothing new is placed on it and training saves itself.

Runs beside Ray on an EC2 spot machine, waits for the notice of its reclaim, and has Ray drain the node (reason:
preemption): `ray.train.get_preemption_info` fires in the workers of a training run. On Kubernetes Ray does that itself,
when it is told to end.
"""

import argparse
import json
import subprocess
import sys
import time
import urllib.request
from datetime import UTC, datetime

import ray

_METADATA = "http://169.254.169.254/latest"  # EC2's own address for it, reachable from the machine alone
_POLL_SECONDS = 5.0  # what AWS advises
_TOKEN_SECONDS = 21_600


def main() -> None:
    """Wait for EC2's notice, then drain this node."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--metadata", default=_METADATA, help="address of the instance metadata")
    drain(wait_for_notice(parser.parse_args().metadata))


def wait_for_notice(metadata: str, poll_seconds: float = _POLL_SECONDS) -> int:
    """The seconds that are left once EC2 has given notice to this spot machine; waits for that."""
    while (notice := read_notice(metadata)) is None:
        time.sleep(poll_seconds)
    return max(0, int((notice - datetime.now(UTC)).total_seconds()))


def read_notice(metadata: str) -> datetime | None:
    """When this machine is reclaimed, in UTC; None while there is no notice, or no answer."""
    try:
        token = _request(
            f"{metadata}/api/token", "PUT", {"X-aws-ec2-metadata-token-ttl-seconds": str(_TOKEN_SECONDS)}
        )
        body = _request(
            f"{metadata}/meta-data/spot/instance-action", "GET", {"X-aws-ec2-metadata-token": token}
        )
    except OSError:  # 404: no notice
        return None
    return datetime.fromisoformat(json.loads(body)["time"])


def _request(url: str, method: str, headers: dict[str, str]) -> str:
    request = urllib.request.Request(url, method=method, headers=headers)
    with urllib.request.urlopen(request, timeout=2) as response:
        return str(response.read().decode())


def drain(seconds: int) -> None:
    """Drain the Ray node of this machine, which is gone in so many seconds."""
    ray.init(address="auto", log_to_driver=False)
    node = ray.get_runtime_context().get_node_id()
    ray.shutdown()
    command = [sys.executable, "-m", "ray.scripts.scripts", "drain-node", "--node-id", node]
    command += ["--reason", "DRAIN_NODE_REASON_PREEMPTION"]
    command += ["--reason-message", "the machine is reclaimed", "--deadline-remaining-seconds", str(seconds)]
    subprocess.run(command, check=True)


if __name__ == "__main__":
    main()
