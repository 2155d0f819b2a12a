"""cluster/aws.yaml and its IAM policies, offline: Ray's own checks, botocore's, and what neither of them looks at."""

import json
import re
from pathlib import Path
from typing import Any

import boto3
import botocore.loaders
import pytest
import yaml
from botocore.model import ServiceModel
from botocore.validate import ParamValidator
from moto import mock_aws
from ray.autoscaler._private.aws.config import bootstrap_aws
from ray.autoscaler._private.aws.node_provider import AWSNodeProvider
from ray.autoscaler._private.util import prepare_config, validate_config

from tests.cluster.filled import CLUSTER, VALUES, fill


@pytest.fixture
def config() -> dict[str, Any]:
    return dict(yaml.safe_load(fill("aws.yaml")))


def check(config: dict[str, Any]) -> None:
    """Raises where the file is not one that `ray up` and EC2 would take, and that we would have."""
    validate_config(prepare_config(config))
    types = config["available_node_types"]
    check_node_configs(types)
    head = types[config["head_node_type"]]
    assert head["resources"] == {"CPU": 0}, "work on the head"
    assert "InstanceMarketOptions" not in head["node_config"], "a head that may be reclaimed"
    for name, of_type in types.items():
        market = of_type["node_config"].get("InstanceMarketOptions", {}).get("MarketType", "on-demand")
        assert of_type["labels"]["ray.io/market-type"] == market, f"{name} is labelled as something else"
        if of_type is not head:
            assert 0 == of_type["min_workers"] <= of_type["max_workers"], f"{name}: min and max"
            assert set(of_type) <= {*head, "min_workers", "max_workers", "priority"}
    workers = [of_type for of_type in types.values() if of_type is not head]
    assert max(of_type["max_workers"] for of_type in workers) <= config["max_workers"]
    spot, fallback = types["gpu-spot"], types["gpu-on-demand"]
    assert spot["resources"] == fallback["resources"], "one could not stand in for the other"
    assert spot["priority"] > fallback["priority"]
    assert re.fullmatch(r"\S+@sha256:[0-9a-f]{64}", config["docker"]["image"])
    assert config["setup_commands"] == [], "Ray would install a nightly build of itself"
    commands = " ".join(config["head_start_ray_commands"])
    assert "--num-cpus=0" in commands
    assert "--dashboard-host=127.0.0.1" in commands


def check_node_configs(types: dict[str, Any]) -> None:
    model = ServiceModel(botocore.loaders.Loader().load_service_model("ec2", "service-2"))
    shape = model.operation_model("RunInstances").input_shape
    for name, of_type in types.items():
        report = ParamValidator().validate({**of_type["node_config"], "MinCount": 1, "MaxCount": 1}, shape)
        assert not report.has_errors(), f"{name}: {report.generate_report()}"


def test_the_file_is_accepted(config: dict[str, Any]) -> None:
    check(config)


@pytest.mark.parametrize(
    ("line", "typo"),
    [
        ("max_workers: 24", "max_worker: 24"),
        ("idle_timeout_minutes: 5", "idle_timeout_minutes: soon"),
        ("head_node_type: head", "head_node_type: haed"),
        ("    resources: { CPU: 16 }", "    resource: { CPU: 16 }"),
        ("    resources: { CPU: 0 }", "    resources: { CPU: 4 }"),
        ("InstanceType: c7i.4xlarge", "InstanceTyp: c7i.4xlarge"),
        ("VolumeSize: 150", "VolumeSize: plenty"),
        ("MarketType: spot", "MarktType: spot"),
        ("InstanceMarketOptions: { MarketType: spot }", "EbsOptimized: true"),
        ("min_workers: 0", "min_workers: 30"),
        ("priority: 10", "priority: -1"),
        ("setup_commands: []", "#"),
        ("@sha256:", ":latest-"),
        ("--num-cpus=0", "--num-cpus=4"),
    ],
)
def test_a_typo_is_caught(line: str, typo: str) -> None:
    text = fill("aws.yaml")
    assert line in text
    with pytest.raises(Exception):  # noqa: B017, PT011  (Ray's, botocore's or ours)
        check(yaml.safe_load(text.replace(line, typo, 1)))


@pytest.mark.slow
@mock_aws
def test_ray_up_launches_it(config: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray's own launcher against a simulated EC2: network, key pair, and a machine of each type."""
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / ".ssh").mkdir()
    iam = boto3.client("iam")
    for name in ("mnerqg-head", "mnerqg-worker"):
        iam.create_instance_profile(InstanceProfileName=name)
    region = VALUES["AWS_REGION"]
    ami = boto3.client("ec2", region).describe_images()["Images"][0]["ImageId"]
    text = yaml.safe_dump(config).replace(VALUES["MNERQG_AMI"], ami)
    launched = bootstrap_aws(prepare_config(yaml.safe_load(text)))
    provider = AWSNodeProvider(launched["provider"], launched["cluster_name"])
    for name, of_type in launched["available_node_types"].items():
        tags = {"ray-node-kind": "worker", "ray-user-node-type": name, "ray-launch-config": "x"}
        (machine,) = provider.create_node(of_type["node_config"], tags, 1).values()
        described = boto3.client("ec2", region).describe_instances(InstanceIds=[machine.id])
        (found,) = described["Reservations"][0]["Instances"]
        assert found["InstanceType"] == config["available_node_types"][name]["node_config"]["InstanceType"]
        assert (found.get("InstanceLifecycle") == "spot") == name.endswith("spot")


# ---- IAM ---------------------------------------------------------------------------------------------------

# S3's actions are not all named as its operations are.
_S3 = {"ListBucket", "ListBucketMultipartUploads", "ListMultipartUploadParts"}


def statements(name: str) -> list[dict[str, Any]]:
    return list(json.loads(fill(f"iam/{name}.json"))["Statement"])


def actions(*of: dict[str, Any]) -> set[str]:
    found = set()
    for statement in of:
        action = statement["Action"]
        found |= {action} if isinstance(action, str) else set(action)
    return found


@pytest.mark.parametrize("name", ["head", "worker", "trust"])
def test_policies_name_actions_that_there_are(name: str) -> None:
    for action in actions(*statements(name)):
        service, _, operation = action.partition(":")
        model = botocore.loaders.Loader().load_service_model(service, "service-2")
        known = {
            *model["operations"],
            *(_S3 if service == "s3" else ()),
            *({"PassRole"} if service == "iam" else ()),
        }
        assert operation in known, action


def test_policies_allow_no_more_than_is_needed(config: dict[str, Any]) -> None:
    for name in ("head", "worker"):
        for statement in statements(name):
            if statement["Resource"] == "*":  # these two services know no narrower one
                assert actions(statement) <= {
                    *("ec2:DescribeInstances", "ec2:DescribeInstanceStatus", "ecr:GetAuthorizationToken")
                }
    assert not any("*" in action for action in actions(*statements("head"), *statements("worker")))
    # Machines of this cluster and of its types, and no other.
    launch = next(one for one in statements("head") if one["Sid"] == "LaunchMachinesOfThisCluster")
    wanted = launch["Condition"]["StringEquals"]
    types = config["available_node_types"]
    workers = {of_type["node_config"]["InstanceType"] for name, of_type in types.items() if name != "head"}
    assert set(wanted["ec2:InstanceType"]) == workers
    assert wanted["aws:RequestTag/ray-cluster-name"] == config["cluster_name"]
    terminate = next(one for one in statements("head") if "ec2:TerminateInstances" in one["Action"])
    assert (
        terminate["Condition"]["StringEquals"]["aws:ResourceTag/ray-cluster-name"] == config["cluster_name"]
    )


def test_readme_names_every_variable() -> None:
    """Each is in the table, and in the envsubst line of the file that uses it."""
    readme = (CLUSTER / "README.md").read_text()
    for path in (*CLUSTER.glob("*.yaml"), *CLUSTER.glob("kuberay/*.yaml"), *CLUSTER.glob("iam/*.json")):
        for name in set(re.findall(r"\$\{([A-Z_]+)\}", path.read_text())):
            assert name in VALUES, f"{path.name}: {name}"
            assert f"| `{name}` |" in readme, name
