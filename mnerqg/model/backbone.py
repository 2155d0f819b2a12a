"""The picture encoder: backbone, YOLOv3 feature pyramid, projection to U1, U2, U3 [paper; layout YOLOv3].

I pictures, S canvas side (256), D width. Maps are ordered coarse to fine, strides 32, 16, 8, everywhere.

Choices: any timm backbone by name [chosen]; pixels by the mean and deviation that its weights were trained
with: timm's for the name, for Darknet-53 those of its files, which know pixels / 255 alone; stages are frozen by
their stride, so that a count means the same for every backbone [chosen].
"""

from contextlib import nullcontext
from typing import Any, Final, cast

import timm
import torch
from timm.models import FeatureDictNet, FeatureInfo
from torch import Tensor, nn
from torch.nn import functional

from mnerqg.boxes import STRIDES
from mnerqg.errors import ModelError

LEAK: Final = 0.1  # of Darknet's leaky ReLU [YOLOv3]


class Backbone(nn.Module):
    """A timm feature backbone with maps at strides 32, 16 and 8 [paper: Darknet-53].

    `darknet53` is the original: timm's has its convolutions and blocks but a leak of 0.01, which we set to
    the original's 0.1. For weights that timm trained, take timm's own by its tag, `darknet53.c2ns_in1k`.

    Pictures are scaled by timm's mean and deviation for the name, tag included. Darknet's published weights saw plain
    pixels / 255, and `darknet53` takes no weights but those, so it has mean 0 and deviation 1. Scaled so, and not by
    folding another scale into the first convolution, its zero padding is exact too. The name decides, so a saved
    model sees what it was trained with.

    frozen_stages: n freezes the stem and all stages up to stride 2**n, without gradient and with the forward
    pass outside autograd; 0 freezes nothing, -1 everything. Frozen parts stay in eval mode.
    frozen_statistics: BatchNorm keeps its running mean and variance in training.
    """

    mean: Tensor  # [3]
    std: Tensor  # [3]

    def __init__(
        self, *, name: str = "darknet53", frozen_stages: int = 0, frozen_statistics: bool = False
    ) -> None:
        super().__init__()
        self.name = name
        self.frozen_stages = frozen_stages
        self.frozen_statistics = frozen_statistics
        self.net = _feature_net(name)
        is_original = name == "darknet53"
        if is_original:
            for module in self.net.modules():
                if isinstance(module, nn.LeakyReLU):
                    module.negative_slope = LEAK

        levels = cast(FeatureInfo, self.net.feature_info)
        reductions: list[int] = levels.reduction()
        widths: list[int] = levels.channels()
        for stride in STRIDES:
            if stride not in reductions:
                raise ModelError(
                    f"backbone {name!r} has maps at strides {reductions}, none at {stride}; "
                    "take one with maps at 8, 16 and 32, such as darknet53 or resnet18"
                )
        # The deepest of several levels with one stride.
        self._levels = tuple(len(reductions) - 1 - reductions[::-1].index(stride) for stride in STRIDES)
        self.channels = cast(tuple[int, int, int], tuple(widths[level] for level in self._levels))

        config = cast(dict[str, Any], self.net.pretrained_cfg)
        mean, std = ((0, 0, 0), (1, 1, 1)) if is_original else (config["mean"], config["std"])
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float32), persistent=False)
        self.register_buffer("std", torch.tensor(std, dtype=torch.float32), persistent=False)

        self._frozen_parts = self._freeze(reductions)
        # Convolutions over NHWC are the faster ones, on the CPU as on a GPU.
        self.to(memory_format=torch.channels_last)
        self.train()

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """pixels uint8 [I, 3, S, S] -> C5 [I, c5, S/32, S/32], C4 [I, c4, S/16, ..], C3 [I, c3, S/8, ..]."""
        x = pixels.to(dtype=self.mean.dtype, memory_format=torch.channels_last)  # [I, 3, S, S]
        x = (x / 255 - self.mean.view(3, 1, 1)) / self.std.view(3, 1, 1)
        x = x.to(next(self.net.parameters()).dtype)
        # On a CPU the backward pass of convolutions takes twice as long in bf16 as in fp32.
        with torch.autocast("cpu", enabled=False) if pixels.device.type == "cpu" else nullcontext():
            maps = self._maps(x)
        c5, c4, c3 = (maps[level] for level in self._levels)
        return c5, c4, c3

    def train(self, mode: bool = True) -> "Backbone":
        super().train(mode)
        if mode:
            for index, part in enumerate(self._parts()):
                if index < self._frozen_parts:
                    part.eval()
            if self.frozen_statistics:
                for module in self.net.modules():
                    if isinstance(module, nn.modules.batchnorm._BatchNorm):
                        module.eval()
        return self

    def _parts(self) -> list[nn.Module]:
        """The backbone's parts in the order of use; a single one where timm's wrapper does not list them."""
        return list(self.net.values()) if isinstance(self.net, FeatureDictNet) else [self.net]

    def _maps(self, x: Tensor) -> list[Tensor]:
        """All feature levels of x [I, 3, S, S], fine to coarse."""
        if not isinstance(self.net, FeatureDictNet):
            with torch.no_grad() if self._frozen_parts else nullcontext():
                return cast(list[Tensor], self.net(x))
        maps: list[Tensor] = []
        for index, (key, part) in enumerate(self.net.items()):
            with torch.no_grad() if index < self._frozen_parts else nullcontext():
                x = part(x)
            if key in self.net.return_layers:
                maps.append(x)
        return maps

    def _freeze(self, reductions: list[int]) -> int:
        """Take the frozen parts out of training; gives their number."""
        parts = self._parts()
        if self.frozen_stages == 0:
            return 0
        if self.frozen_stages == -1:
            count = len(parts)
        else:
            levels = [level for level, stride in enumerate(reductions) if stride <= 2**self.frozen_stages]
            if self.frozen_stages < -1 or not levels or not isinstance(self.net, FeatureDictNet):
                raise ModelError(
                    f"backbone {self.name!r}: frozen_stages {self.frozen_stages} is not possible with "
                    f"strides {reductions}; take 0 (none) or -1 (all)"
                )
            keys = list(self.net)
            count = keys.index(list(self.net.return_layers)[levels[-1]]) + 1
        for part in parts[:count]:
            part.requires_grad_(False)
        return count


class FeaturePyramid(nn.Module):
    """The neck of yolov3.cfg between the backbone and its detection convolutions [paper; layout YOLOv3].

    `width` is that of the 1x1 convolutions at stride 32, halved at each finer level, `depth` the number of
    (1x1, 3x3) pairs before the level's last 1x1. YOLOv3 has 512 and 2.
    """

    def __init__(self, *, in_channels: tuple[int, int, int], width: int = 512, depth: int = 2) -> None:
        super().__init__()
        if width < 4 or width % 4 or depth < 0:
            raise ModelError(
                f"feature pyramid: width {width}, depth {depth}; take a multiple of 4 and a depth >= 0"
            )
        c5, c4, c3 = in_channels
        self.levels = nn.ModuleList(
            [
                PyramidLevel(channels=c5, coarser=0, width=width, depth=depth),
                PyramidLevel(channels=c4, coarser=width, width=width // 2, depth=depth),
                PyramidLevel(channels=c3, coarser=width // 2, width=width // 4, depth=depth),
            ]
        )
        self.channels: tuple[int, int, int] = (2 * width, width, width // 2)

    def forward(self, c5: Tensor, c4: Tensor, c3: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """C5, C4, C3 -> P5 [I, 2w, S/32, S/32], P4 [I, w, S/16, S/16], P3 [I, w/2, S/8, S/8]."""
        outputs: list[Tensor] = []
        body: Tensor | None = None
        for level, backbone_map in zip(self.levels, (c5, c4, c3), strict=True):
            body, output = level(backbone_map, body)
            outputs.append(output)
        p5, p4, p3 = outputs
        return p5, p4, p3


class PyramidLevel(nn.Module):
    """One stride of the pyramid, its convolutions registered in the order of yolov3.cfg."""

    def __init__(self, *, channels: int, coarser: int, width: int, depth: int) -> None:
        super().__init__()
        self.lateral = _convolution(coarser, width, 1) if coarser else None
        pairs: list[nn.Module] = []
        incoming = channels + (width if coarser else 0)
        for _ in range(depth):
            pairs += [_convolution(incoming, width, 1), _convolution(width, 2 * width, 3)]
            incoming = 2 * width
        self.body = nn.Sequential(*pairs, _convolution(incoming, width, 1))
        self.output = _convolution(width, 2 * width, 3)

    def forward(self, backbone_map: Tensor, coarser: Tensor | None) -> tuple[Tensor, Tensor]:
        """Backbone map [I, c, R, R], body of the coarser level [I, 2w, R/2, R/2] -> body [I, w, R, R] and
        output [I, 2w, R, R]."""
        if self.lateral is not None and coarser is not None:
            lateral = self.lateral(coarser)  # [I, w, R/2, R/2]
            upsampled = functional.interpolate(lateral, scale_factor=2.0, mode="nearest")
            backbone_map = torch.cat([upsampled, backbone_map], dim=1)  # [I, w + c, R, R]
        body: Tensor = self.body(backbone_map)
        return body, self.output(body)


class VisualEncoder(nn.Module):
    """Pictures to U1, U2, U3 [paper]: backbone, feature pyramid, 1x1 convolution + BatchNorm + ReLU to D."""

    def __init__(
        self, *, backbone: Backbone, width: int, pyramid_width: int = 512, pyramid_depth: int = 2
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.pyramid = FeaturePyramid(in_channels=backbone.channels, width=pyramid_width, depth=pyramid_depth)
        self.projections = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(channels, width, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU(inplace=True)
            )
            for channels in self.pyramid.channels
        )
        self.to(memory_format=torch.channels_last)

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """pixels uint8 [I, 3, S, S] -> U1 [I, D, S/32, S/32], U2 [I, D, S/16, S/16], U3 [I, D, S/8, S/8]."""
        maps = self.pyramid(*self.backbone(pixels))
        u1, u2, u3 = (project(level) for project, level in zip(self.projections, maps, strict=True))
        return u1, u2, u3


def _convolution(incoming: int, outgoing: int, size: int) -> nn.Sequential:
    """Convolution + BatchNorm + leaky ReLU, Darknet's unit; eps 1e-5 as in Darknet's GPU code [YOLOv3]."""
    return nn.Sequential(
        nn.Conv2d(incoming, outgoing, size, padding=size // 2, bias=False),
        nn.BatchNorm2d(outgoing, eps=1e-5),
        nn.LeakyReLU(LEAK, inplace=True),
    )


def _feature_net(name: str) -> nn.Module:
    """timm's feature wrapper for the name, as a list of parts wherever timm can give one."""
    try:
        net: nn.Module = timm.create_model(name, pretrained=False, features_only=True)
        if not isinstance(net, FeatureDictNet) and isinstance(getattr(net, "blocks", None), nn.Sequential):
            # timm wraps the EfficientNet family in a class of its own, whose stages cannot be run one by one.
            net = timm.create_model(
                name, pretrained=False, features_only=True, feature_cfg={"flatten_sequential": True}
            )
    except (RuntimeError, ValueError, AttributeError, AssertionError, TypeError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ModelError(
            f"backbone {name!r}: timm has no feature maps for it ({reason}); try darknet53"
        ) from error
    if str(getattr(net, "output_fmt", "NCHW")).rsplit(".", 1)[-1] != "NCHW":
        raise ModelError(f"backbone {name!r}: its maps are not [I, C, H, W]; take a convolutional backbone")
    return net
