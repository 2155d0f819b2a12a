"""Layers in fp32 on a CPU whose weights lie in the order in which oneDNN's kernels read them.

torch multiplies matrices with MKL, which on processors of other makers is the slower one: oneDNN did 8 to 18 % more
in a second on an AMD EPYC. Convolutions are oneDNN's either way, but lay their weights anew in each call, and the
activation behind is a pass of its own. The operators are those that torch's compiler puts in the place of such layers.

A deep copy of a packed layer is an ordinary one again: a network that answers may be made ready for something else.
"""

from collections.abc import Callable
from copy import deepcopy
from typing import Any, Final, TypeGuard

import torch
from torch import Tensor, nn

# What oneDNN calls the activations that it knows, and their numbers.
_ACTIVATIONS: Final[dict[type[nn.Module], Callable[[Any], tuple[str, list[float]]]]] = {
    nn.ReLU: lambda _: ("relu", []),
    nn.ReLU6: lambda _: ("hardtanh", [0.0, 6.0]),
    nn.LeakyReLU: lambda layer: ("leaky_relu", [layer.negative_slope]),
    nn.SiLU: lambda _: ("swish", []),
    nn.Hardswish: lambda _: ("hardswish", []),
}
ACTIVATIONS: Final = tuple(_ACTIVATIONS)
"""Kinds that `PackedConvolution` takes."""


def can_pack() -> bool:
    """Whether this build of torch has the operators."""
    names = (
        "_linear_pointwise",
        "_reorder_linear_weight",
        "_convolution_pointwise",
        "_reorder_convolution_weight",
    )
    return torch.backends.mkldnn.is_available() and all(hasattr(torch.ops.mkldnn, name) for name in names)


def takes(layer: nn.Module) -> TypeGuard[nn.Conv2d]:
    """Whether a layer is a convolution that `PackedConvolution` takes; subclasses may pad or multiply in other ways."""
    return type(layer) is nn.Conv2d and layer.padding_mode == "zeros" and not isinstance(layer.padding, str)


def pack(network: nn.Module) -> None:
    """Pack all linear layers and convolutions; subclasses of them may be used in other ways, and stay."""
    for holder in list(network.modules()):
        for name, layer in list(holder.named_children()):
            if type(layer) is nn.Linear:
                setattr(holder, name, PackedLinear(layer))
            elif takes(layer):
                setattr(holder, name, PackedConvolution(layer))


class PackedLinear(nn.Module):
    """A linear layer.

    Attributes:
        weight: has the shape and type of the layer's, and no values.
    """

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        self._packed = torch.ops.mkldnn._reorder_linear_weight(layer.weight, None)
        self.weight = layer.weight.to("meta")
        self.bias = layer.bias

    def forward(self, states: Tensor) -> Tensor:
        """[..., in] -> [..., out]."""
        packed: Tensor = torch.ops.mkldnn._linear_pointwise(states, self._packed, self.bias, "none", [], "")
        return packed

    def __deepcopy__(self, _: dict[int, Any]) -> nn.Linear:
        weight = self._packed.to_dense()
        layer = nn.Linear(weight.shape[1], weight.shape[0], bias=self.bias is not None, device="meta")
        layer.weight = nn.Parameter(weight, requires_grad=False)
        if self.bias is not None:
            layer.bias = nn.Parameter(self.bias.clone(), requires_grad=False)
        return layer


class PackedConvolution(nn.Module):
    """A convolution and, in the same pass, the activation behind it; its answers are channels-last.

    Args:
        convolution: one that is taken (see `takes`).
        activation: of one of `ACTIVATIONS`, or None.

    Attributes:
        weight: has the shape and type of the convolution's, and no values.
    """

    def __init__(self, convolution: nn.Conv2d, activation: nn.Module | None = None) -> None:
        super().__init__()
        self.weight, self.bias = convolution.weight.to("meta"), convolution.bias
        self._geometry: Any = (
            convolution.padding,
            convolution.stride,
            convolution.dilation,
            convolution.groups,
        )
        # In a list it is no part of this module, by which others would take it for one that is called.
        self._activation = [] if activation is None else [activation]
        name, numbers = _ACTIVATIONS[type(activation)](activation) if activation is not None else ("none", [])
        self._post_op = name, numbers, ""
        # The order that suits a map depends on its shape: the values lie in that of the last shape, or as they were.
        self._laid: tuple[torch.Size | None, Tensor] = None, convolution.weight.detach()

    def forward(self, maps: Tensor) -> Tensor:
        """[I, C, H, W] -> [I, C', H', W']."""
        shape, weight = self._laid
        if shape != maps.shape[1:] and len(maps):
            weight = torch.ops.mkldnn._reorder_convolution_weight(
                self._plain(weight), *self._geometry, list(maps.shape)
            )
            # Of several threads that come here at once the last one's stays, and each has one that is right.
            self._laid = maps.shape[1:], weight
        answer: Tensor = torch.ops.mkldnn._convolution_pointwise(
            maps, weight, self.bias, *self._geometry, *self._post_op
        )
        return answer

    def __deepcopy__(self, memo: dict[int, Any]) -> nn.Module:
        padding, stride, dilation, groups = self._geometry
        out_channels, in_channels, height, width = self.weight.shape
        convolution = nn.Conv2d(
            in_channels * groups,
            out_channels,
            (height, width),
            stride=stride,
            padding=padding,
            dilation=dilation,
            groups=groups,
            bias=self.bias is not None,
            device="meta",
        )
        weight = self._plain(self._laid[1]).clone(memory_format=torch.channels_last)
        convolution.weight = nn.Parameter(weight, requires_grad=False)
        if self.bias is not None:
            convolution.bias = nn.Parameter(self.bias.clone(), requires_grad=False)
        return (
            nn.Sequential(convolution, *deepcopy(self._activation, memo)) if self._activation else convolution
        )

    @staticmethod
    def _plain(weight: Tensor) -> Tensor:
        return weight.to_dense() if weight.is_mkldnn else weight
