from concurrent.futures import ThreadPoolExecutor
from copy import deepcopy
from threading import Barrier

import pytest
import torch
from torch import nn

from mnerqg.model.packing import ACTIVATIONS, PackedConvolution, PackedLinear, pack


def values(layer: nn.Module) -> dict[str, list[float]]:
    return {name: value.tolist() for name, value in layer.state_dict().items()}


def test_a_packed_linear_layer_answers_alike() -> None:
    layer = nn.Linear(24, 40).requires_grad_(False)
    packed = PackedLinear(layer)
    assert (packed.weight.shape, packed.weight.dtype) == (layer.weight.shape, layer.weight.dtype)
    whole = torch.randn(6, 48, 5)
    for states in (whole[..., 0][:, :24], whole[:, ::2].mT, whole[:0, :24, 0], whole[0, :24, 0]):
        torch.testing.assert_close(packed(states), layer(states))


@pytest.mark.parametrize("bias", [True, False])
def test_a_copy_of_a_packed_linear_layer_is_an_ordinary_one(bias: bool) -> None:
    layer = nn.Linear(24, 40, bias=bias).requires_grad_(False)
    copied = deepcopy(PackedLinear(layer))
    assert type(copied) is nn.Linear
    assert values(copied) == values(layer)


CONVOLUTIONS = {
    "plain": lambda: nn.Conv2d(6, 8, 3, padding=1),
    "1x1 without bias": lambda: nn.Conv2d(6, 8, 1, bias=False),
    "of each channel, at a stride": lambda: nn.Conv2d(6, 6, 5, stride=2, padding=2, groups=6),
    "of several channels in a group": lambda: nn.Conv2d(6, 24, 3, padding=1, groups=3),
    "dilated": lambda: nn.Conv2d(6, 8, 3, padding=(2, 4), dilation=(1, 2)),
}
ACTIVATED = (None, nn.ReLU(), nn.ReLU6(), nn.LeakyReLU(0.1), nn.SiLU(), nn.Hardswish())


def test_other_convolutions_stay() -> None:
    class Own(nn.Conv2d):
        pass

    others = [nn.Conv2d(2, 2, 3, padding="same"), nn.Conv2d(2, 2, 3, padding_mode="reflect"), Own(2, 2, 3)]
    network = nn.Sequential(*others, nn.Conv2d(2, 2, 3)).requires_grad_(False)
    pack(network)
    assert list(network)[:3] == others
    assert isinstance(network[3], PackedConvolution)


def test_all_activations_are_tried() -> None:
    assert {type(one) for one in ACTIVATED[1:]} == set(ACTIVATIONS)


@pytest.mark.parametrize("name", CONVOLUTIONS)
@pytest.mark.parametrize("activation", ACTIVATED, ids=lambda one: type(one).__name__)
def test_a_packed_convolution_answers_alike(name: str, activation: nn.Module | None) -> None:
    """Maps of several shapes one after another, none at all among them, in both orders of memory."""
    layer = CONVOLUTIONS[name]().requires_grad_(False)
    packed = PackedConvolution(layer, activation)
    whole = 6 * torch.randn(3, 6, 16, 12)  # beyond 6, where ReLU6 ends
    for maps in (whole[:0], whole, whole[:1, :, :8], whole.to(memory_format=torch.channels_last), whole[:0]):
        answer = packed(maps)
        expected = layer(maps) if activation is None else activation(layer(maps))
        torch.testing.assert_close(answer, expected, rtol=1e-5, atol=1e-5)
    copied = deepcopy(packed)
    kinds = [nn.Conv2d] if activation is None else [nn.Conv2d, type(activation)]
    assert [type(copied)] == kinds or [type(part) for part in copied] == kinds
    assert list(values(copied).values()) == list(values(layer).values())
    torch.testing.assert_close(
        copied(whole), layer(whole) if activation is None else activation(layer(whole))
    )


def test_weights_are_laid_anew_for_another_shape_alone() -> None:
    packed = PackedConvolution(nn.Conv2d(6, 8, 3, padding=1).requires_grad_(False))
    laid = []
    for shape in ((2, 6, 8, 8), (1, 6, 8, 8), (0, 6, 4, 4), (2, 6, 4, 4)):
        packed(torch.randn(shape))
        laid.append(packed._laid[1])
    assert laid[0].is_mkldnn
    assert laid[0] is laid[1] is laid[2]
    assert laid[3] is not laid[2]


def test_several_threads_ask_a_packed_convolution_at_once() -> None:
    """Each with maps of another shape, so that each lays the weights anew beside the others."""
    layer = nn.Conv2d(6, 8, 3, padding=1).requires_grad_(False)
    packed = PackedConvolution(layer)
    maps = [torch.randn(1, 6, side, side) for side in (4, 8, 12, 16)] * 8
    together = Barrier(4)

    def ask(seen: torch.Tensor) -> torch.Tensor:
        together.wait()
        return packed(seen)

    with ThreadPoolExecutor(4) as threads:
        answers = list(threads.map(ask, maps))
    for seen, answer in zip(maps, answers, strict=True):
        torch.testing.assert_close(answer, layer(seen))
