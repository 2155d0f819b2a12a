"""Files in Darknet's true format, and a small Darknet that runs them layer by layer as the `.cfg` says."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mnerqg.errors import ModelError
from mnerqg.model.backbone import Backbone, FeaturePyramid
from mnerqg.model.darknet_weights import (
    DARKNET53_FLOATS,
    YOLOV3_FLOATS,
    darknet53_shapes,
    yolov3_level_shapes,
)
from mnerqg.model.pretrained import load_pretrained

HEADER = np.array([0, 2, 0, 32_013_312, 0], dtype="<i4").tobytes()
DETECTION_FLOATS = 255 * (1024 + 512 + 256) + 3 * 255


@dataclass(frozen=True)
class Layer:
    """A section of a `.cfg`: conv, shortcut or route (of other layers), upsample, yolo."""

    kind: str
    filters: int = 0
    size: int = 1
    stride: int = 1
    batch_norm: bool = True
    of: tuple[int, ...] = ()


def yolov3_cfg() -> list[Layer]:
    """yolov3.cfg, layers 0 to 106; the first 75 are those of darknet53.conv.74."""
    layers = [Layer("conv", 32, 3)]
    for filters, blocks in ((64, 1), (128, 2), (256, 8), (512, 8), (1024, 4)):
        layers.append(Layer("conv", filters, 3, 2))
        for _ in range(blocks):
            layers += [Layer("conv", filters // 2), Layer("conv", filters, 3), Layer("shortcut", of=(-3,))]
    for filters, joined in ((512, None), (256, 61), (128, 36)):
        if joined is not None:
            layers += [Layer("route", of=(-4,)), Layer("conv", filters), Layer("upsample")]
            layers += [Layer("route", of=(-1, joined))]
        layers += [Layer("conv", filters), Layer("conv", 2 * filters, 3)] * 3
        layers += [Layer("conv", 255, batch_norm=False), Layer("yolo")]
    return layers


class StreamReader:
    def __init__(self, values: npt.NDArray[np.float32]) -> None:
        self.values = values
        self.offset = 0

    def take(self, *shape: int) -> Tensor:
        count = int(np.prod(shape))
        chunk = np.array(self.values[self.offset : self.offset + count])
        self.offset += count
        return torch.from_numpy(chunk).view(shape)


@torch.no_grad()
def run_darknet(layers: list[Layer], stream: StreamReader, x: Tensor) -> list[Tensor]:
    """The output of every layer for x [I, 3, S, S]."""
    outputs: list[Tensor] = []
    for index, layer in enumerate(layers):
        if layer.kind == "conv":
            channels = x.shape[1]
            bias = stream.take(layer.filters)
            norm = [stream.take(layer.filters) for _ in range(3)] if layer.batch_norm else None
            kernel = stream.take(layer.filters, channels, layer.size, layer.size)
            x = F.conv2d(x, kernel, stride=layer.stride, padding=layer.size // 2)
            if norm is None:
                x = x + bias.view(-1, 1, 1)
            else:
                scale, mean, variance = (values.view(-1, 1, 1) for values in norm)
                x = (x - mean) / torch.sqrt(variance + 1e-5) * scale + bias.view(-1, 1, 1)
                x = torch.where(x > 0, x, 0.1 * x)
        elif layer.kind == "shortcut":
            x = x + outputs[index + layer.of[0]]
        elif layer.kind == "route":
            x = torch.cat([outputs[of if of >= 0 else index + of] for of in layer.of], dim=1)
        elif layer.kind == "upsample":
            x = x.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
        outputs.append(x)
    return outputs


def random_stream(layers: list[Layer]) -> Iterator[npt.NDArray[np.float32]]:
    """Values for each convolution of the cfg, of a size that keeps the maps finite."""
    draw = np.random.default_rng(7)
    channels_of: list[int] = []
    for index, layer in enumerate(layers):
        channels = channels_of[-1] if channels_of else 3
        if layer.kind == "route":
            channels = sum(channels_of[of if of >= 0 else index + of] for of in layer.of)
        if layer.kind == "conv":
            yield 0.1 * draw.standard_normal(layer.filters, dtype=np.float32)  # bias
            if layer.batch_norm:
                yield draw.random(layer.filters, dtype=np.float32) + 0.5  # scale
                yield 0.1 * draw.standard_normal(layer.filters, dtype=np.float32)  # mean
                yield draw.random(layer.filters, dtype=np.float32) + 0.5  # variance
            fan_in = channels * layer.size**2
            yield draw.standard_normal(layer.filters * fan_in, dtype=np.float32) * np.float32(fan_in**-0.5)
            channels = layer.filters
        channels_of.append(channels)


def modules_in_cfg_order(backbone: Backbone) -> Iterator[tuple[nn.Conv2d, nn.BatchNorm2d]]:
    """By timm's attribute names, so that nothing here follows the reader's way of finding them."""
    units = [backbone.net["stem_conv1"]]
    for stage in range(5):
        part = backbone.net[f"stages_{stage}"]
        units.append(part.conv_down)
        for block in part.blocks:
            units += [block.conv1, block.conv2]
    return ((unit.conv, unit.bn) for unit in units)


def randomise(module: nn.Module) -> None:
    draw = torch.Generator().manual_seed(3)
    for name, tensor in module.state_dict().items():
        if not name.endswith("num_batches_tracked"):
            tensor.uniform_(0.5, 1.5, generator=draw)


@pytest.fixture(scope="module")
def yolov3_file(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    path = tmp_path_factory.mktemp("darknet") / "yolov3.weights"
    with path.open("wb") as file:
        file.write(HEADER)
        for values in random_stream(yolov3_cfg()):
            values.tofile(file)
    yield path
    path.unlink()


@pytest.fixture(scope="module")
def darknet53() -> Backbone:
    return Backbone().eval()


def empty_file(path: Path, *, floats: int, more_bytes: int = 0, header: bytes = HEADER) -> Path:
    """A sparse file of the size asked for."""
    with path.open("wb") as file:
        file.write(header)
        file.truncate(len(header) + 4 * floats + more_bytes)
    return path


def test_shapes_add_up_to_the_published_files() -> None:
    trunk = sum(shape.floats for shape in darknet53_shapes())
    levels = sum(shape.floats for level in yolov3_level_shapes() for shape in level)
    assert len(darknet53_shapes()) == 52
    assert trunk == DARKNET53_FLOATS == 40_620_640
    assert trunk + levels == YOLOV3_FLOATS == 62_001_757


def test_yolov3_file_fills_backbone_and_pyramid(yolov3_file: Path, darknet53: Backbone) -> None:
    """With Darknet's maps of pixels / 255, up to the border. Before, they were those of pixels on ImageNet's scale, an
    error that leaves a cosine of 0.38 to 0.52 to the right features of EfficientNet-Lite0.
    """
    assert yolov3_file.stat().st_size == 20 + 4 * 62_001_757
    pyramid = FeaturePyramid(in_channels=darknet53.channels).eval()
    report = load_pretrained(darknet53, str(yolov3_file), pyramid=pyramid)
    assert report.skipped == DETECTION_FLOATS
    assert report.loaded == 62_001_757 - DETECTION_FLOATS
    # Every parameter and statistic has its place in the file.
    held = [tensor for module in (darknet53.net, pyramid) for tensor in module.state_dict().values()]
    assert report.loaded == sum(tensor.numel() for tensor in held if tensor.is_floating_point())

    pixels = torch.randint(0, 256, (1, 3, 96, 96), dtype=torch.uint8)
    stream = StreamReader(np.memmap(yolov3_file, dtype="<f4", mode="r", offset=20))
    expected = run_darknet(yolov3_cfg(), stream, pixels / 255)
    assert stream.offset == 62_001_757
    with torch.no_grad():
        maps = darknet53(pixels)
        outputs = pyramid(*maps)
    # Layers 80, 92 and 104 feed the three detection convolutions 81, 93 and 105.
    for found, layer in zip((*maps, *outputs), (74, 61, 36, 80, 92, 104), strict=True):
        want = expected[layer]
        assert found.shape == want.shape
        assert want.std() > 0.01
        torch.testing.assert_close(found, want, rtol=1e-3, atol=1e-4 * float(want.abs().max()))


def test_yolov3_file_fills_a_backbone_alone(yolov3_file: Path, darknet53: Backbone) -> None:
    report = load_pretrained(darknet53, str(yolov3_file))
    assert (report.loaded, report.skipped) == (40_620_640, 62_001_757 - 40_620_640)


def test_backbone_file_returns_every_tensor(tmp_path: Path, darknet53: Backbone) -> None:
    randomise(darknet53.net)
    path = tmp_path / "darknet53.conv.74"
    with path.open("wb") as file:
        file.write(HEADER)
        for conv, norm in modules_in_cfg_order(darknet53):
            for tensor in (norm.bias, norm.weight, norm.running_mean, norm.running_var, conv.weight):
                tensor.detach().contiguous().numpy().tofile(file)
    assert path.stat().st_size == 20 + 4 * 40_620_640
    written = {name: tensor.clone() for name, tensor in darknet53.net.state_dict().items()}
    for tensor in darknet53.net.state_dict().values():
        tensor.zero_()
    pyramid = FeaturePyramid(in_channels=darknet53.channels, width=32, depth=0)
    before = {name: tensor.clone() for name, tensor in pyramid.state_dict().items()}
    report = load_pretrained(darknet53, str(path), pyramid=pyramid)
    assert (report.loaded, report.skipped) == (40_620_640, 0)
    found = darknet53.net.state_dict()
    assert all(torch.equal(found[name], tensor) for name, tensor in written.items())
    assert all(torch.equal(tensor, before[name]) for name, tensor in pyramid.state_dict().items())


def test_header_of_old_versions_is_four_int32(tmp_path: Path, darknet53: Backbone) -> None:
    header = np.array([0, 1, 0, 0], dtype="<i4").tobytes()
    path = empty_file(tmp_path / "old.weights", floats=40_620_640, header=header)
    assert load_pretrained(darknet53, str(path)).loaded == 40_620_640


@pytest.mark.parametrize(
    ("floats", "more_bytes"),
    [(40_620_639, 0), (40_620_641, 0), (62_001_756, 0), (62_001_758, 0), (62_001_756, 2), (0, 0)],
)
def test_other_sizes_are_refused_with_both_counts(
    tmp_path: Path, darknet53: Backbone, floats: int, more_bytes: int
) -> None:
    path = empty_file(tmp_path / "cut.weights", floats=floats, more_bytes=more_bytes)
    with pytest.raises(ModelError) as caught:
        load_pretrained(darknet53, str(path))
    message = str(caught.value)
    assert f"holds {floats:,} float32 values" in message
    assert "40,620,640" in message
    assert "62,001,757" in message
    assert "\n" not in message


def test_a_file_shorter_than_its_header_is_refused(tmp_path: Path, darknet53: Backbone) -> None:
    (tmp_path / "x.weights").write_bytes(b"\0\0\0")
    with pytest.raises(ModelError, match="holds 0 float32 values"):
        load_pretrained(darknet53, str(tmp_path / "x.weights"))


def test_another_pyramid_is_refused_untouched(tmp_path: Path, darknet53: Backbone) -> None:
    path = empty_file(tmp_path / "yolov3.weights", floats=62_001_757)
    before = darknet53.net["stem_conv1"].conv.weight.clone()
    for width, depth in ((256, 2), (512, 1)):
        pyramid = FeaturePyramid(in_channels=darknet53.channels, width=width, depth=depth)
        with pytest.raises(ModelError, match=re.escape("width to 512 and its depth to 2")):
            load_pretrained(darknet53, str(path), pyramid=pyramid)
    assert torch.equal(before, darknet53.net["stem_conv1"].conv.weight)


def test_another_backbone_is_refused(tmp_path: Path) -> None:
    path = empty_file(tmp_path / "darknet53.conv.74", floats=40_620_640)
    with pytest.raises(ModelError, match="darknet53, not 'resnet18'"):
        load_pretrained(Backbone(name="resnet18"), str(path))
