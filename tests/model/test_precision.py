import os
import subprocess
import sys

import pytest
import torch

from mnerqg.model.precision import multiplies_bf16


def test_bf16_is_left_to_processors_that_multiply_in_it() -> None:
    code = (
        "import torch; from mnerqg.model.precision import multiplies_bf16; "
        "print(multiplies_bf16(torch.device('cpu')))"
    )
    older = os.environ | {"ATEN_CPU_CAPABILITY": "avx2"}  # torch uses no more than that then
    told = subprocess.run([sys.executable, "-c", code], env=older, check=True, capture_output=True, text=True)
    assert told.stdout.split() == ["False"]


@pytest.mark.parametrize("capability", [(7, 5), (8, 0)])
def test_bf16_is_left_to_gpus_that_multiply_in_it(
    monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int]
) -> None:
    """A Turing card was trained in imitated bf16 before; torch by itself calls that supported."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.version, "cuda", "12.8")
    monkeypatch.setattr(
        torch.cuda, "get_device_properties", lambda _device: type("Card", (), {"major": capability[0]})
    )
    assert multiplies_bf16(torch.device("cuda")) == (capability[0] >= 8)
