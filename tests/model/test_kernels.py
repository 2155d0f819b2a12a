"""The kernels against the layers that they stand for: interpreted on a CPU, and as they are where there is a GPU."""

import os
import subprocess
import sys

import pytest

pytest.importorskip("triton", reason="Triton is not installed")

CHECK = """
import sys
import torch
import torch.nn.functional as F
from mnerqg.model import kernels
from mnerqg.model.heads import GroundingHead

device, dtype = sys.argv[1], getattr(torch, sys.argv[2])
torch.manual_seed(0)
exact = {"rtol": 1e-5, "atol": 1e-5} if dtype == torch.float32 else {"rtol": 2e-2, "atol": 2e-2}

for shape in ((2, 24, 5, 7), (1, 3, 1, 1), (3, 32, 16, 16)):
    for slope in (0.0, 0.1):
        maps = torch.randn(shape, device=device, dtype=dtype).to(memory_format=torch.channels_last)
        bias = torch.randn(shape[1], device=device, dtype=dtype)
        expected = F.leaky_relu(maps.float() + bias.float()[:, None, None], slope)
        found = kernels.add_bias_and_leak_(maps, bias, slope)
        assert found is maps
        torch.testing.assert_close(found.float(), expected, **exact)

head = GroundingHead(width=128, anchors_per_scale=3).eval().requires_grad_(False)
for norm in head.norms:
    norm.running_mean.normal_()
    norm.running_var.uniform_(0.5, 2)
head.fold_norms()
assert head.takes_kernel(kernels.MOST_OUTPUTS)
maps = tuple(torch.randn(3, 128, side, side) for side in (3, 6, 12))
queries, shown = torch.randn(4, 2, 128), torch.tensor([0, 1, 3])
expected = head(maps, queries, shown)
head = head.to(device, dtype)
head.kernel = kernels.ground
given = [grid.to(device, dtype) for grid in maps]
found = head(given, queries.to(device, dtype), shown.to(device))
assert found.dtype == torch.float32
assert (found[2] == 0).all()
torch.testing.assert_close(found.cpu(), expected, **{name: 5 * value for name, value in exact.items()})
none = head([grid[:0] for grid in given], queries.to(device, dtype), shown[:0].to(device))
assert (none == 0).all()
"""


def check(device: str, dtype: str) -> None:
    """In a process of its own: whether kernels are interpreted is settled when they are imported."""
    environment = os.environ | ({"TRITON_INTERPRET": "1"} if device == "cpu" else {})
    done = subprocess.run(
        [sys.executable, "-c", CHECK, device, dtype],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_interpreted_kernels_say_what_layers_say() -> None:
    """In float32 alone: Triton's interpreter multiplies the bits of bfloat16 as whole numbers."""
    check("cpu", "float32")


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_kernels_say_what_layers_say(dtype: str) -> None:
    check("cuda", dtype)
