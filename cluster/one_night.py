"""A job for one night out of the nightly one: `python one_night.py 2026-11-22 < FILE | kubectl create -f -`.

FILE is kuberay/nightly-tagging.yaml with its variables filled in (envsubst).
"""

import sys
from datetime import date
from typing import Any

import yaml


def one_night(cron_job: dict[str, Any], night: date) -> dict[str, Any]:
    """The RayJob of the RayCronJob's template for a night: the same cluster and command, told which night it is."""
    job: dict[str, Any] = cron_job["spec"]["jobTemplate"]
    (head,) = job["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]["containers"]
    # A list of its own: the workers' is the same one in the file.
    head["env"] = [*head["env"], {"name": "NIGHT", "value": night.isoformat()}]
    return {
        "apiVersion": cron_job["apiVersion"],
        "kind": "RayJob",
        "metadata": {"generateName": f"mnerqg-night-{night.isoformat()}-"},
        "spec": job,
    }


if __name__ == "__main__":
    document = one_night(yaml.safe_load(sys.stdin), date.fromisoformat(sys.argv[1]))
    yaml.safe_dump(document, sys.stdout, sort_keys=False)
