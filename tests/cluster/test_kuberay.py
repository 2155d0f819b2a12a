"""cluster/kuberay, offline: against KubeRay's own schemas where they are at hand, and against what those leave open."""

import json
import shlex
from datetime import date
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from cluster.one_night import one_night
from mnerqg.config import Config
from mnerqg.config_files import load_config, load_files
from mnerqg.config_jobs import TagConfig
from tests.cluster.filled import CLUSTER, VALUES, fill

SCHEMAS = CLUSTER.parents[1] / "shared" / "kuberay"
FILES = {"raycluster": "rayclusters", "train": "rayjobs", "nightly-tagging": "raycronjobs"}

needs_schemas = pytest.mark.skipif(not SCHEMAS.is_dir(), reason=f"no KubeRay schemas in {SCHEMAS}")


def load(name: str) -> dict[str, Any]:
    return dict(yaml.safe_load(fill(f"kuberay/{name}.yaml")))


def cluster_of(document: dict[str, Any]) -> dict[str, Any]:
    """The RayCluster spec in any of the three kinds."""
    spec: dict[str, Any] = document["spec"]
    spec = spec.get("jobTemplate", spec)
    return dict(spec.get("rayClusterSpec", spec))


@cache
def schema_of(kind: str, version: str = "v1") -> dict[str, Any]:
    crd = yaml.load((SCHEMAS / f"crd_{kind}.yaml").read_text(), yaml.CSafeLoader)
    versions = {entry["name"]: entry["schema"]["openAPIV3Schema"] for entry in crd["spec"]["versions"]}
    return dict(strict(versions[version]))


def strict(schema: Any) -> Any:
    """The schema with every key forbidden that it does not name: the API server would drop it without a word."""
    if isinstance(schema, list):
        return [strict(entry) for entry in schema]
    if not isinstance(schema, dict):
        return schema
    closed = {key: strict(value) for key, value in schema.items()}
    if "properties" in schema and isinstance(schema["properties"], dict):
        closed.setdefault("additionalProperties", False)
    return closed


def check(document: dict[str, Any]) -> None:
    """Raises where KubeRay would take the document for something else than we mean."""
    cluster = cluster_of(document)
    head, groups = cluster["headGroupSpec"], cluster["workerGroupSpecs"]
    assert cluster["authOptions"]["mode"] == "token"
    assert cluster["enableInTreeAutoscaling"] is True
    assert cluster["autoscalerOptions"]["version"] == "v2"
    assert head["rayStartParams"]["num-cpus"] == "0", "work on the head"
    for group in groups:
        name = group["groupName"]
        assert 0 == group["minReplicas"] == group["replicas"] < group["maxReplicas"], f"{name}: min and max"
        market = group["labels"]["ray.io/market-type"]
        assert group["template"]["spec"]["nodeSelector"]["karpenter.sh/capacity-type"] == market, name
    by_name = {group["groupName"]: group for group in groups}
    assert by_name["gpu-spot"]["priority"] > by_name["gpu-on-demand"]["priority"]
    for pod in (head, *groups):
        spec = pod["template"]["spec"]
        (container,) = spec["containers"]
        requests, limits = (container["resources"][kind] for kind in ("requests", "limits"))
        assert spec["serviceAccountName"] == "mnerqg"
        assert spec["restartPolicy"] == "Never"
        assert spec["securityContext"]["runAsNonRoot"] is True
        assert container["image"] == VALUES["MNERQG_IMAGE"]
        assert {variable["name"] for variable in container["env"]} >= {"AWS_REGION", "RAY_ROTATION_MAX_BYTES"}
        assert requests["memory"] == limits["memory"], "a pod that may be evicted for memory it counts on"
        store = int(pod["rayStartParams"]["object-store-memory"])
        assert store < int(limits["memory"].removesuffix("Gi")) * 2**30 / 2
        if pod is not head:
            environment = {variable["name"]: variable["value"] for variable in container["env"]}
            drain_seconds = float(environment["RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S"])
            assert 60 <= drain_seconds < spec["terminationGracePeriodSeconds"]
            assert ("nvidia.com/gpu" in limits) == pod["groupName"].startswith("gpu")
    job = document["spec"].get("jobTemplate", document["spec"])
    if "entrypoint" in job:
        assert job["shutdownAfterJobFinishes"] is True
        assert job["ttlSecondsAfterFinished"] > 0
        assert job["backoffLimit"] > 0
        assert "/opt/mnerqg/" in job["entrypoint"]
    if "schedule" in document["spec"]:
        assert len(document["spec"]["schedule"].split()) == 5
        assert document["spec"]["timeZone"] == "Etc/UTC"  # in which nightly.sh reckons
        assert job["activeDeadlineSeconds"] <= 24 * 3600


@pytest.mark.parametrize("name", FILES)
def test_what_the_schemas_leave_open(name: str) -> None:
    check(load(name))


@needs_schemas
@pytest.mark.parametrize("name", FILES)
def test_kuberay_accepts_it(name: str) -> None:
    jsonschema.validate(load(name), schema_of(FILES[name]))


@needs_schemas
@pytest.mark.parametrize(
    ("name", "line", "typo"),
    [
        ("raycluster", "maxReplicas: 2", "maxReplica: 2"),
        ("raycluster", "upscalingMode: Default", "upscalingMode: Fast"),
        ("raycluster", "priority: 10", 'priority: "10"'),
        ("train", "backoffLimit: 3", "backofLimit: 3"),
        ("train", "shutdownAfterJobFinishes: true", 'shutdownAfterJobFinishes: "yes"'),
        ("train", "restartPolicy: Never", "restartPolcy: Never"),
        ("nightly-tagging", "schedule:", "shedule:"),
        ("nightly-tagging", "timeZone:", "timezone:"),
        ("nightly-tagging", "ttlSecondsAfterFinished: 3600", "ttlSecondsAfterFinished: 1h"),
        ("nightly-tagging", "terminationGracePeriodSeconds: 120", "terminationGracePeriod: 120"),
    ],
)
def test_the_schemas_catch_a_typo(name: str, line: str, typo: str) -> None:
    text = fill(f"kuberay/{name}.yaml")
    assert line in text
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(yaml.safe_load(text.replace(line, typo, 1)), schema_of(FILES[name]))


@pytest.mark.parametrize(
    ("line", "typo"),
    [
        ("timeZone: Etc/UTC", "timeZone: Europe/Berlin"),
        ('num-cpus: "0"', 'num-cpus: "4"'),
        ("minReplicas: 0", "minReplicas: 9"),
        ("priority: 10", "priority: -1"),
        ("mode: token", "mode: disabled"),
        ("karpenter.sh/capacity-type: spot", "karpenter.sh/capacity-type: on-demand"),
        ("serviceAccountName: mnerqg", "serviceAccountName: default"),
        ('DRAIN_TIMEOUT_S, value: "100"', 'DRAIN_TIMEOUT_S, value: "1000"'),
        ('"8000000000"', '"80000000000"'),
        ("activeDeadlineSeconds: 43200", "activeDeadlineSeconds: 432000"),
        ("limits: { memory: 28Gi, nvidia", "limits: { memory: 64Gi, nvidia"),
        ("@sha256:", ":latest-"),
    ],
)
def test_our_own_checks_catch_a_typo(line: str, typo: str) -> None:
    text = fill("kuberay/nightly-tagging.yaml")
    assert line in text
    with pytest.raises((AssertionError, ValueError, KeyError)):
        check(yaml.safe_load(text.replace(line, typo, 1)))


def check_account(account: dict[str, Any]) -> None:
    """Raises where it is not the account that the pods have, or its role not the one that README.md makes for it."""
    assert set(account) == {"apiVersion", "kind", "metadata"}
    assert (account["apiVersion"], account["kind"]) == ("v1", "ServiceAccount")
    assert account["metadata"] == {
        "name": "mnerqg",
        "namespace": "default",
        "annotations": {"eks.amazonaws.com/role-arn": "arn:aws:iam::123456789012:role/mnerqg-pods"},
    }
    (trust,) = json.loads(fill("iam/trust-pods.json"))["Statement"]
    provider = VALUES["MNERQG_OIDC"]
    assert trust["Principal"] == {"Federated": f"arn:aws:iam::123456789012:oidc-provider/{provider}"}
    subject = "system:serviceaccount:{namespace}:{name}".format_map(account["metadata"])
    assert trust["Condition"] == {
        "StringEquals": {f"{provider}:aud": "sts.amazonaws.com", f"{provider}:sub": subject}
    }
    assert "--role-name mnerqg-pods" in (CLUSTER / "README.md").read_text()


def test_the_service_account_is_the_one_that_pods_have() -> None:
    check_account(load("service-account"))


@pytest.mark.parametrize(
    ("line", "typo"),
    [
        ("name: mnerqg", "name: mnerq"),
        ("annotations:", "anotations:"),
        ("role-arn", "role_arn"),
        ("mnerqg-pods", "mnerqg-head"),
        ("namespace: default", "namespace: tagging"),
    ],
)
def test_a_typo_in_the_service_account_is_caught(line: str, typo: str) -> None:
    text = fill("kuberay/service-account.yaml")
    assert line in text
    with pytest.raises(AssertionError):
        check_account(yaml.safe_load(text.replace(line, typo)))


def test_ray_is_the_same_everywhere() -> None:
    pins = (CLUSTER.parent / "constraints.txt").read_text().splitlines()
    (pin,) = [line.partition("==")[2] for line in pins if line.startswith("ray==")]
    assert {cluster_of(load(name))["rayVersion"] for name in FILES} == {pin}


def test_files_are_all_looked_at() -> None:
    assert {path.stem for path in Path(CLUSTER / "kuberay").glob("*.yaml")} == {*FILES, "service-account"}


def test_the_jobs_take_their_settings() -> None:
    """A typo in an entrypoint would be met by the first job, on a cluster that has been paid for."""
    words = shlex.split(load("train")["spec"]["entrypoint"])
    config = CLUSTER.parent / words[words.index("--config") + 1].removeprefix("/opt/mnerqg/")
    settings = load_files(Config, [config], [word for word in words if word.startswith("--train.")])
    assert (settings.train.workers, settings.train.gpus_per_worker) == ((2, 8), 1)
    assert settings.train.autoscaling is True  # it begins with no machine
    words = shlex.split(load("nightly-tagging")["spec"]["jobTemplate"]["entrypoint"])
    tagging = load_config(TagConfig, "", words[2:])
    assert (tagging.actors, tagging.gpus_per_actor, tagging.autoscaling) == ((1, 8), 1, True)
    assert tagging.pictures.roots == ("s3://team-posts/pictures",)


def test_a_night_of_its_own() -> None:
    cron_job = load("nightly-tagging")
    job = one_night(load("nightly-tagging"), date(2026, 11, 22))
    (head,) = cluster_of(job)["headGroupSpec"]["template"]["spec"]["containers"]
    assert {"name": "NIGHT", "value": "2026-11-22"} in head["env"]
    head["env"] = head["env"][:-1]
    assert job["spec"] == cron_job["spec"]["jobTemplate"]  # and nothing else has changed
    if SCHEMAS.is_dir():
        jsonschema.validate(job, schema_of("rayjobs"))
