"""cluster/aws.yaml and its IAM policies, offline: Ray's own checks, botocore's, and what neither of them looks at."""

import json
import re
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import boto3
import botocore.exceptions
import botocore.loaders
import pytest
import yaml
from botocore.model import ServiceModel
from botocore.validate import ParamValidator
from moto import mock_aws
from ray.autoscaler._private.providers import _get_node_provider, _get_node_provider_cls
from ray.autoscaler._private.util import prepare_config, validate_config
from ray.autoscaler.node_launch_exception import NodeLaunchException

from mnerqg.distributed.spot_or_on_demand import SpotOrOnDemand
from tests.cluster.filled import CLUSTER, VALUES, fill

REGION = VALUES["AWS_REGION"]


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
        if of_type is not head:
            market = of_type["node_config"].get("InstanceMarketOptions", {}).get("MarketType")
            assert market == "spot", f"{name} is not asked for on the spot market"
            assert 0 == of_type["min_workers"] <= of_type["max_workers"], f"{name}: min and max"
            assert set(of_type) <= {*head, "min_workers", "max_workers"}
    workers = [of_type for of_type in types.values() if of_type is not head]
    assert max(of_type["max_workers"] for of_type in workers) <= config["max_workers"]
    assert _get_node_provider_cls(config["provider"]) is SpotOrOnDemand
    assert re.fullmatch(r"\S+@sha256:[0-9a-f]{64}", config["docker"]["image"])
    assert config["setup_commands"] == [], "Ray would install a nightly build of itself"
    commands = " ".join(config["head_start_ray_commands"])
    assert "--num-cpus=0" in commands
    assert "--dashboard-host=127.0.0.1" in commands
    check_what_ray_takes_as_it_is(config)


def check_what_ray_takes_as_it_is(config: dict[str, Any]) -> None:
    """Its schema leaves these open, and what is not known there is not read."""
    known = {*("type", "module", "region", "availability_zone", "security_group"), "cache_stopped_nodes"}
    assert set(config["provider"]) <= {*known, "use_internal_ips"}
    assert config["provider"]["cache_stopped_nodes"] is False
    assert 1 <= config["idle_timeout_minutes"] <= 30, "idle machines are paid for"
    assert config["file_mounts"] == {"/home/ray/.ray/auth_token": "~/.ray/auth_token"}
    docker = config["docker"]
    options = [shlex.split(option) for option in (*docker["run_options"], *docker["worker_run_options"])]
    environment = dict(option[1].split("=") for option in options if option[0] == "--env")
    assert environment["RAY_AUTH_MODE"] == "token"
    assert environment["AWS_REGION"] == config["provider"]["region"] == REGION
    assert environment["NVIDIA_VISIBLE_DEVICES"] == "all"
    assert set(environment) <= {
        *("RAY_AUTH_MODE", "RAY_ROTATION_MAX_BYTES", "RAY_ROTATION_BACKUP_COUNT"),
        *("AWS_REGION", "NVIDIA_VISIBLE_DEVICES", "NVIDIA_DRIVER_CAPABILITIES"),
    }
    (watch,) = [command for command in config["worker_start_ray_commands"] if "python" in command]
    assert watch.startswith("nohup python /opt/mnerqg/cluster/spot.py > ")
    for of_type in config["available_node_types"].values():
        options = of_type["node_config"]["MetadataOptions"]
        assert options == {"HttpTokens": "required", "HttpPutResponseHopLimit": 2}


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
        ("spot_or_on_demand.SpotOrOnDemand", "spot_or_on_demand.SpotAndOnDemand"),
        ("setup_commands: []", "#"),
        ("@sha256:", ":latest-"),
        ("--num-cpus=0", "--num-cpus=4"),
        ("cache_stopped_nodes: false", "cache_stoped_nodes: false"),
        ("use_internal_ips: false", "use_internal_ip: false"),
        ("idle_timeout_minutes: 5", "idle_timeout_minutes: 500"),
        ("~/.ray/auth_token", "~/.ray/auth_tokn"),
        ("RAY_AUTH_MODE=token", "RAY_AUTH_MOD=token"),
        ("NVIDIA_VISIBLE_DEVICES", "NVIDIA_VISIBLE_DEVICE"),
        ("HttpTokens: required", "HttpTokens: requird"),
        ("cluster/spot.py", "cluster/sport.py"),
    ],
)
def test_a_typo_is_caught(line: str, typo: str) -> None:
    text = fill("aws.yaml")
    assert line in text
    with pytest.raises(Exception):  # noqa: B017, PT011  (Ray's, botocore's or ours)
        check(yaml.safe_load(text.replace(line, typo, 1)))


@pytest.fixture
def launched(
    config: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[dict[str, Any], SpotOrOnDemand]]:
    """What `ray up` makes of the file in a simulated EC2 (network, key pair), and the provider that launches."""
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / ".ssh").mkdir()
    with mock_aws():
        iam = boto3.client("iam")
        for name in ("mnerqg-head", "mnerqg-worker"):
            iam.create_instance_profile(InstanceProfileName=name)
        ami = boto3.client("ec2", REGION).describe_images()["Images"][0]["ImageId"]
        text = yaml.safe_dump(config).replace(VALUES["MNERQG_AMI"], ami)
        prepared = prepare_config(yaml.safe_load(text))
        filled = _get_node_provider_cls(prepared["provider"]).bootstrap_config(prepared)
        yield filled, _get_node_provider(filled["provider"], filled["cluster_name"])


def launch(launched: tuple[dict[str, Any], SpotOrOnDemand], kind: str) -> dict[str, Any]:
    """A machine of the type, as EC2 describes it."""
    config, provider = launched
    tags = {"ray-node-kind": "worker", "ray-user-node-type": kind, "ray-launch-config": "x"}
    (machine,) = provider.create_node(config["available_node_types"][kind]["node_config"], tags, 1).values()
    described = boto3.client("ec2", REGION).describe_instances(InstanceIds=[machine.id])
    return dict(described["Reservations"][0]["Instances"][0])


@pytest.mark.slow
def test_ray_up_launches_it(config: dict[str, Any], launched: tuple[dict[str, Any], SpotOrOnDemand]) -> None:
    for name, of_type in config["available_node_types"].items():
        found = launch(launched, name)
        assert found["InstanceType"] == of_type["node_config"]["InstanceType"]
        assert (found.get("InstanceLifecycle") == "spot") == (name != "head")


@contextmanager
def refusing(provider: SpotOrOnDemand, code: str, *, spot_only: bool) -> Iterator[None]:
    """EC2 answers launches with the error `code`."""

    def answer(params: dict[str, Any], **_: Any) -> tuple[Any, dict[str, Any]] | None:
        if spot_only and "InstanceMarketOptions.MarketType" not in params["body"]:
            return None
        return SimpleNamespace(status_code=400), {
            "Error": {"Code": code, "Message": "there is none"},
            "ResponseMetadata": {"HTTPStatusCode": 400},
        }

    events = provider.ec2_fail_fast.meta.client.meta.events  # Ray keeps the client for the next provider
    events.register_first("before-call.ec2.RunInstances", answer)
    try:
        yield
    finally:
        events.unregister("before-call.ec2.RunInstances", answer)


@pytest.mark.slow
@pytest.mark.parametrize("code", ["InsufficientInstanceCapacity", "Unsupported"])
def test_without_spot_machines_it_launches_on_demand(
    launched: tuple[dict[str, Any], SpotOrOnDemand], code: str
) -> None:
    with refusing(launched[1], code, spot_only=True):
        found = launch(launched, "gpu")
    assert found["InstanceType"] == "g6.2xlarge"
    assert "InstanceLifecycle" not in found


@pytest.mark.slow
@pytest.mark.parametrize(
    ("code", "kind"), [("UnauthorizedOperation", "gpu"), ("InsufficientInstanceCapacity", "head")]
)
def test_any_other_refusal_is_the_autoscalers(
    launched: tuple[dict[str, Any], SpotOrOnDemand], code: str, kind: str
) -> None:
    with refusing(launched[1], code, spot_only=False), pytest.raises(NodeLaunchException) as caught:
        launch(launched, kind)
    assert caught.value.category == code


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


@pytest.mark.parametrize("name", ["head", "worker", "trust", "trust-pods"])
def test_policies_name_what_there_is(name: str) -> None:
    check_policy(fill(f"iam/{name}.json"))


@pytest.mark.parametrize(
    ("name", "word", "typo"),
    [
        ("head", "ec2:RunInstances", "ec2:RunInstance"),
        ("head", '"Condition"', '"Conditon"'),
        ("head", '"Allow"', '"Alow"'),
        ("worker", "s3:GetObject", "s3:GetObjects"),
        ("worker", '"Resource"', '"Ressource"'),
        ("worker", "ecr:BatchGetImage", "ercr:BatchGetImage"),
        ("trust", "sts:AssumeRole", "sts:AsumeRole"),
        ("trust-pods", "sts:AssumeRoleWithWebIdentity", "sts:AssumeRoleWithWebIdentiy"),
        ("trust-pods", '"StringEquals"', '"StringEqual"'),
    ],
)
def test_a_typo_in_a_policy_is_caught(name: str, word: str, typo: str) -> None:
    text = fill(f"iam/{name}.json")
    assert word in text
    with pytest.raises((AssertionError, botocore.exceptions.UnknownServiceError)):
        check_policy(text.replace(word, typo, 1))


def check_policy(text: str) -> None:
    """Raises where a policy has a key, an operator or an action that IAM does not know."""
    policy = json.loads(text)
    assert set(policy) == {"Version", "Statement"}
    for statement in policy["Statement"]:
        assert set(statement) - {"Sid", "Condition"} in (
            {"Effect", "Action", "Resource"},
            {"Effect", "Action", "Principal"},
        )
        assert statement["Effect"] == "Allow"
        assert set(statement.get("Condition", {})) <= {"StringEquals"}
    for action in actions(*policy["Statement"]):
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
    """Each is in the table, and those of aws.yaml, which has others that are not ours, in its envsubst line."""
    readme = (CLUSTER / "README.md").read_text()
    aws = (CLUSTER / "aws.yaml").read_text()
    wanted = set(re.findall(r"\$\{([A-Z_]+)\}", aws))
    for text in (readme, aws):
        (line,) = re.findall(r"envsubst '(.*)'", text)
        assert set(line.replace("$", "").split()) == wanted
    for path in (*CLUSTER.glob("*.yaml"), *CLUSTER.glob("kuberay/*.yaml"), *CLUSTER.glob("iam/*.json")):
        for name in set(re.findall(r"\$\{([A-Z_]+)\}", path.read_text())):
            assert name in VALUES, f"{path.name}: {name}"
            assert f"| `{name}` |" in readme, name
