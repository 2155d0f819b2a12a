"""Backbone, feature pyramid and projections: shapes, scaling, freezing."""

import pytest
import timm
import torch
from torch import Tensor, nn

from mnerqg.errors import ModelError
from mnerqg.model.backbone import Backbone, FeaturePyramid, VisualEncoder

NAMES = {
    "tf_efficientnet_lite0": (320, 112, 40),
    "resnet18": (512, 256, 128),
    "darknet53": (1024, 512, 256),
}


def pictures(count: int, side: int) -> Tensor:
    return torch.randint(0, 256, (count, 3, side, side), dtype=torch.uint8, generator=torch.manual_seed(1))


@pytest.fixture(scope="module")
def darknet53() -> Backbone:
    return Backbone(name="darknet53").eval()


@pytest.mark.parametrize("name", NAMES)
def test_maps_at_strides_32_16_8(name: str, darknet53: Backbone) -> None:
    backbone = darknet53 if name == "darknet53" else Backbone(name=name).eval()
    assert backbone.channels == NAMES[name]
    for side in (256, 96):
        with torch.no_grad():
            maps = backbone(pictures(1, side))
        shapes = [tuple(level.shape) for level in maps]
        assert shapes == [
            (1, channels, side // stride, side // stride)
            for channels, stride in zip(NAMES[name], (32, 16, 8), strict=True)
        ]


@pytest.mark.parametrize("name", ["tf_efficientnet_lite0", "resnet18"])
def test_maps_are_those_of_timm(name: str) -> None:
    """Through our stage-by-stage pass, and with pixels scaled as timm's configuration says."""
    backbone = Backbone(name=name).eval()
    full = timm.create_model(name).eval()
    own = {key.replace(".", "_"): value for key, value in backbone.net.state_dict().items()}
    state = full.state_dict()
    full.load_state_dict({key: own.get(key.replace(".", "_"), value) for key, value in state.items()})
    config = full.pretrained_cfg
    pixels = pictures(1, 64)
    mean, std = (torch.tensor(config[key]).view(3, 1, 1) for key in ("mean", "std"))
    with torch.no_grad():
        expected = full.forward_intermediates((pixels / 255 - mean) / std, intermediates_only=True)
        found = backbone(pixels)
    for level in found:
        want = next(other for other in reversed(expected) if other.shape == level.shape)
        torch.testing.assert_close(level, want, rtol=1e-4, atol=1e-4)


def test_scaling_is_no_part_of_the_weights() -> None:
    backbone = Backbone(name="tf_efficientnet_lite0")
    assert backbone.mean.tolist() == backbone.std.tolist() == [0.5, 0.5, 0.5]
    assert not {"mean", "std"} & backbone.state_dict().keys()


def test_darknet_knows_pixels_by_255_alone_and_timm_s_own_weights_timm_s_scale(darknet53: Backbone) -> None:
    """Before, both saw ImageNet's mean and deviation."""
    assert (darknet53.mean.tolist(), darknet53.std.tolist()) == ([0, 0, 0], [1, 1, 1])
    with torch.device("meta"):
        tagged = timm.create_model("darknet53.c2ns_in1k", features_only=True)
    own = Backbone(name="darknet53.c2ns_in1k")
    torch.testing.assert_close(own.mean, torch.tensor(tagged.pretrained_cfg["mean"]))
    assert own.mean.tolist() == pytest.approx([0.485, 0.456, 0.406])


def test_darknet53_is_the_original(darknet53: Backbone) -> None:
    """Its 52 convolutions are compared to the cfg in test_darknet_weights."""
    slopes = {module.negative_slope for module in darknet53.modules() if isinstance(module, nn.LeakyReLU)}
    epsilons = {module.eps for module in darknet53.modules() if isinstance(module, nn.BatchNorm2d)}
    assert slopes == {0.1}
    assert epsilons == {1e-5}


@pytest.mark.parametrize("name", ["tf_efficientnet_lite0", "resnet18"])
@pytest.mark.parametrize("frozen_stages", [1, 3])
def test_frozen_stages_get_no_gradient_and_keep_their_statistics(name: str, frozen_stages: int) -> None:
    backbone = Backbone(name=name, frozen_stages=frozen_stages)
    backbone.train()
    before = {key: value.clone() for key, value in backbone.state_dict().items()}
    c5, c4, c3 = backbone(pictures(2, 64))
    assert c3.requires_grad == (frozen_stages < 3)
    assert c4.requires_grad
    (c5.mean() + c4.mean()).backward()
    frozen = [key for key, weight in backbone.named_parameters() if not weight.requires_grad]
    trained = [key for key, weight in backbone.named_parameters() if weight.grad is not None]
    assert frozen
    assert not set(frozen) & set(trained)
    assert len(frozen) + len(trained) == len(list(backbone.parameters()))
    moved = [key for key, value in backbone.state_dict().items() if not torch.equal(value, before[key])]
    frozen_modules = {key.rsplit(".", 1)[0] for key in frozen}
    assert moved
    assert not {key.rsplit(".", 1)[0] for key in moved} & frozen_modules


def test_first_stages_mean_the_same_stride_everywhere() -> None:
    def frozen_children(name: str) -> list[str]:
        net = Backbone(name=name, frozen_stages=2).net
        return [
            key
            for key, part in net.named_children()
            if any(True for _ in part.parameters()) and not any(w.requires_grad for w in part.parameters())
        ]

    assert frozen_children("resnet18") == ["conv1", "bn1", "layer1"]
    assert frozen_children("tf_efficientnet_lite0") == ["conv_stem", "bn1", "blocks_0", "blocks_1"]
    assert frozen_children("darknet53") == ["stem_conv1", "stages_0", "stages_1"]


def test_everything_frozen() -> None:
    backbone = Backbone(name="resnet18", frozen_stages=-1)
    assert not any(weight.requires_grad for weight in backbone.parameters())
    assert not any(level.requires_grad for level in backbone(pictures(1, 64)))


def test_frozen_statistics_leave_weights_to_training() -> None:
    encoder = VisualEncoder(
        backbone=Backbone(name="resnet18", frozen_statistics=True),
        width=16,
        pyramid_width=16,
        pyramid_depth=0,
    )
    before = {key: value.clone() for key, value in encoder.state_dict().items() if "running" in key}
    encoder.eval()
    encoder.train()
    u1, u2, u3 = encoder(pictures(2, 64))
    (u1.sum() + u2.sum() + u3.sum()).backward()
    assert all(weight.grad is not None for weight in encoder.parameters())
    for key, value in encoder.state_dict().items():
        if "running" in key:
            assert torch.equal(value, before[key]) == key.startswith("backbone."), key


def test_visual_encoder_gives_the_three_scales() -> None:
    encoder = VisualEncoder(
        backbone=Backbone(name="tf_efficientnet_lite0"), width=24, pyramid_width=32, pyramid_depth=1
    )
    encoder.eval()
    with torch.no_grad():
        scales = encoder(pictures(2, 256))
    assert [tuple(scale.shape) for scale in scales] == [(2, 24, 8, 8), (2, 24, 16, 16), (2, 24, 32, 32)]
    assert all(bool((scale >= 0).all()) for scale in scales)


@pytest.mark.parametrize("depth", [0, 1, 2])
def test_pyramid_channels(depth: int) -> None:
    pyramid = FeaturePyramid(in_channels=(48, 24, 12), width=16, depth=depth)
    assert pyramid.channels == (32, 16, 8)
    outputs = pyramid(torch.randn(2, 48, 2, 2), torch.randn(2, 24, 4, 4), torch.randn(2, 12, 8, 8))
    assert [tuple(level.shape) for level in outputs] == [(2, 32, 2, 2), (2, 16, 4, 4), (2, 8, 8, 8)]


@pytest.mark.parametrize("name", ["no_such_model", "vit_tiny_patch16_224", "swin_tiny_patch4_window7_224"])
def test_backbones_without_the_maps_are_refused(name: str) -> None:
    with pytest.raises(ModelError, match=name) as caught:
        Backbone(name=name)
    assert "\n" not in str(caught.value)


def test_impossible_freezing_and_pyramids_are_refused() -> None:
    with pytest.raises(ModelError, match="frozen_stages -2"):
        Backbone(name="resnet18", frozen_stages=-2)
    with pytest.raises(ModelError, match="width 30"):
        FeaturePyramid(in_channels=(8, 8, 8), width=30)
