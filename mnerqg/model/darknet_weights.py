"""The original Darknet `.weights` stream, read into torch modules [paper: Darknet-53; YOLOv3].

A file is a header and then, for every convolution in the order of the `.cfg`, float32 values without names:

    with BatchNorm:     bias, scale, running mean, running variance [out] each, kernel [out, in, k, k]
    without BatchNorm:  bias [out], kernel [out, in, k, k]

The header is int32 major, minor, revision and then the number of pictures seen, which is one int32 before
version 0.2 and an int64 from then on. So the published files, of version 0.2, begin with five int32.

Two files are known, by their number of floats: `darknet53.conv.74` (the 52 convolutions of the backbone) and
`yolov3.weights` (backbone, feature pyramid and three detection convolutions, for which we have no use).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from mnerqg.errors import ModelError

DARKNET53_FLOATS = 40_620_640
YOLOV3_FLOATS = 62_001_757

_BLOCKS = (1, 2, 8, 8, 4)  # residual blocks in the five stages of Darknet-53 [YOLOv3]
_DETECTION_FILTERS = 255  # 3 anchors x (4 coordinates + 1 confidence + 80 COCO classes)


@dataclass(frozen=True, kw_only=True)
class WeightReport:
    """How many numbers of a weight file went into the model, and how many the model has no place for."""

    loaded: int
    skipped: int


@dataclass(frozen=True, kw_only=True)
class ConvShape:
    """One convolution of a `.cfg`: kernel [filters, channels, size, size], with BatchNorm or with a bias."""

    filters: int
    channels: int
    size: int
    batch_norm: bool = True

    @property
    def floats(self) -> int:
        kernel = self.filters * self.channels * self.size * self.size
        return kernel + (4 if self.batch_norm else 1) * self.filters


def darknet53_shapes() -> list[ConvShape]:
    """The 52 convolutions of darknet53.cfg without its classifier: 40,620,640 floats."""
    shapes = [ConvShape(filters=32, channels=3, size=3)]
    for stage, blocks in enumerate(_BLOCKS):
        filters = 64 << stage
        shapes.append(ConvShape(filters=filters, channels=filters // 2, size=3))
        for _ in range(blocks):
            shapes.append(ConvShape(filters=filters // 2, channels=filters, size=1))
            shapes.append(ConvShape(filters=filters, channels=filters // 2, size=3))
    return shapes


def yolov3_level_shapes() -> list[list[ConvShape]]:
    """The convolutions of yolov3.cfg after the backbone: a list a stride (32, 16, 8), detection last."""
    levels: list[list[ConvShape]] = []
    for width, backbone_channels in ((512, 1024), (256, 512), (128, 256)):
        level: list[ConvShape] = []
        channels = backbone_channels
        if levels:
            level.append(ConvShape(filters=width, channels=2 * width, size=1))
            channels += width
        for _ in range(3):
            level.append(ConvShape(filters=width, channels=channels, size=1))
            level.append(ConvShape(filters=2 * width, channels=width, size=3))
            channels = 2 * width
        level.append(ConvShape(filters=_DETECTION_FILTERS, channels=channels, size=1, batch_norm=False))
        levels.append(level)
    return levels


def load_darknet_weights(
    path: Path, *, backbone: nn.Module, levels: Sequence[nn.Module] = ()
) -> WeightReport:
    """Fill a Darknet-53 and, from a YOLOv3 file, the three levels of its feature pyramid.

    The modules register their convolutions in the order of the `.cfg`, each before its BatchNorm. `levels`
    are the pyramid's for strides 32, 16, 8. A file of the backbone alone leaves them as they are; a YOLOv3
    file without `levels` fills the backbone. What is read over is counted as skipped.
    """
    values = _read_values(path)
    remedy = "name the backbone darknet53"
    trunk = _matched(backbone, darknet53_shapes(), path=path, what="the backbone", remedy=remedy)
    stream: list[tuple[nn.Conv2d, nn.BatchNorm2d] | ConvShape] = [*trunk]
    if len(values) == YOLOV3_FLOATS:
        level_shapes = yolov3_level_shapes()
        if levels and len(levels) != len(level_shapes):
            raise ModelError(f"{path}: fills a pyramid of {len(level_shapes)} levels, not of {len(levels)}")
        for index, shapes in enumerate(level_shapes):
            if levels:
                remedy = "set the pyramid's width to 512 and its depth to 2, or load the backbone alone"
                what = f"level {index} of the pyramid"
                stream.extend(_matched(levels[index], shapes[:-1], path=path, what=what, remedy=remedy))
                stream.append(shapes[-1])
            else:
                stream.extend(shapes)

    offset = skipped = 0
    with torch.no_grad():
        for target in stream:
            if isinstance(target, ConvShape):
                offset += target.floats
                skipped += target.floats
                continue
            convolution, norm = target
            for tensor in (norm.bias, norm.weight, norm.running_mean, norm.running_var, convolution.weight):
                assert tensor is not None
                chunk = values[offset : offset + tensor.numel()]
                tensor.copy_(torch.from_numpy(np.array(chunk, dtype=np.float32)).view(tensor.shape))
                offset += tensor.numel()
    if offset != len(values):
        raise ModelError(f"{path}: read {offset:,} of {len(values):,} float32 values; report this as a bug")
    return WeightReport(loaded=offset - skipped, skipped=skipped)


def _read_values(path: Path) -> npt.NDArray[np.float32]:
    """The float32 values behind the header, mapped and not copied, as many as a known file has."""
    try:
        size = path.stat().st_size
        head = np.fromfile(path, dtype="<i4", count=3)
    except OSError as error:
        reason = error.strerror or str(error)
        raise ModelError(f"{path}: cannot be read ({reason}); give the path of a .weights file") from error
    # Darknet's own rule: the count of pictures became 64 bits wide with version 0.2.
    wide = len(head) == 3 and int(head[0]) * 10 + int(head[1]) >= 2
    header_bytes = 20 if wide else 16
    found, rest = divmod(max(0, size - header_bytes), 4)
    if rest or found not in (DARKNET53_FLOATS, YOLOV3_FLOATS):
        odd = f" and {rest} bytes" if rest else ""
        raise ModelError(
            f"{path}: holds {found:,} float32 values{odd}, expected {DARKNET53_FLOATS:,} (darknet53.conv.74) "
            f"or {YOLOV3_FLOATS:,} (yolov3.weights); download the file again"
        )
    return np.memmap(path, dtype="<f4", mode="r", offset=header_bytes)


def _matched(
    module: nn.Module, shapes: Sequence[ConvShape], *, path: Path, what: str, remedy: str
) -> list[tuple[nn.Conv2d, nn.BatchNorm2d]]:
    """The module's convolutions with their BatchNorm, checked to have the shapes that the file has."""
    pairs = list(_convolutions(module))
    found = [tuple(convolution.weight.shape) for convolution, _ in pairs]
    expected = [(shape.filters, shape.channels, shape.size, shape.size) for shape in shapes]
    if len(found) != len(expected):
        raise ModelError(
            f"{path}: holds {len(expected)} convolutions for {what}, which has {len(found)}; {remedy}"
        )
    for number, (have, want) in enumerate(zip(found, expected, strict=True)):
        if have != want:
            raise ModelError(
                f"{path}: holds {list(want)} for convolution {number} of {what}, "
                f"which is {list(have)}; {remedy}"
            )
    return pairs


def _convolutions(module: nn.Module) -> Iterator[tuple[nn.Conv2d, nn.BatchNorm2d]]:
    """Every convolution with the BatchNorm registered next after it; one without is left out of the count."""
    convolution: nn.Conv2d | None = None
    for part in module.modules():
        if isinstance(part, nn.Conv2d):
            convolution = part
        elif isinstance(part, nn.BatchNorm2d) and convolution is not None:
            yield convolution, part
            convolution = None
