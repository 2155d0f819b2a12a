"""The files of cluster/ with their variables filled in, as envsubst does it."""

from pathlib import Path

CLUSTER = Path(__file__).parents[2] / "cluster"

VALUES = {
    "AWS_ACCOUNT_ID": "123456789012",
    "AWS_REGION": "eu-central-1",
    "MNERQG_BUCKET": "team-posts",
    "MNERQG_REGISTRY": "123456789012.dkr.ecr.eu-central-1.amazonaws.com",
    "MNERQG_IMAGE": f"123456789012.dkr.ecr.eu-central-1.amazonaws.com/mnerqg@sha256:{'0123456789abcdef' * 4}",
    "MNERQG_AMI": "ami-0123456789abcdef0",
    "MNERQG_OIDC": f"oidc.eks.eu-central-1.amazonaws.com/id/{'0123456789ABCDEF' * 2}",
    "MNERQG_HEAD_PROFILE": "arn:aws:iam::123456789012:instance-profile/mnerqg-head",
    "MNERQG_WORKER_PROFILE": "arn:aws:iam::123456789012:instance-profile/mnerqg-worker",
}


def fill(name: str) -> str:
    """A file of cluster/ with every variable replaced."""
    text = (CLUSTER / name).read_text(encoding="utf-8")
    for variable, value in VALUES.items():
        text = text.replace(f"${{{variable}}}", value)
    return text
