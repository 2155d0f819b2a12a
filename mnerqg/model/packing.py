"""Layers in fp32 on a CPU whose weights lie in the order in which oneDNN's kernels read them.

torch multiplies matrices with MKL, which on processors of other makers is the slower one: oneDNN did 8 to 18 % more
in a second on an AMD EPYC. Convolutions are oneDNN's either way, but lay their weights anew in each call, and the
activation behind is a pass of its own. The operators are those that torch's compiler puts in the place of such layers.

A deep copy of a packed layer is an ordinary one again: a network that answers may be made ready for something else.
"""

from collections.abc import Callable
from copy import deepcopy
from typing import Any, Final

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
    operators = torch.ops.mkldnn
    return torch.backends.mkldnn.is_available() and all(
        hasattr(operators, name) for name in ("_linear_pointwise", "_convolution_pointwise")
    )


def pack(network: nn.Module) -> None:
    """Pack all linear layers and convolutions; subclasses of them may be used in other ways, and stay."""
    for holder in list(network.modules()):
        for name, layer in list(holder.named_children()):
            if type(layer) is nn.Linear:
                setattr(holder, name, PackedLinear(layer))
            elif type(layer) is nn.Conv2d and layer.padding_mode == "zeros":
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
        convolution: pads with zeros.
        activation: of one of `ACTIVATIONS`, or None.
    """

    def __init__(self, convolution: nn.Conv2d, activation: nn.Module | None = None) -> None:
        super().__init__()
        self._layers = [convolution] if activation is None else [convolution, activation]
        self.weight, self.bias = convolution.weight, convolution.bias
        self._places = convolution.padding, convolution.stride, convolution.dilation, convolution.groups
        bend, numbers = _ACTIVATIONS[type(activation)](activation) if activation is not None else ("none", [])
        self._bend = bend, numbers, ""
        # The order that suits a map depends on its shape, and these are the last one's.
        self._packed: tuple[torch.Size, Tensor] | None = None

    def forward(self, maps: Tensor) -> Tensor:
        """[I, C, H, W] -> [I, C', H', W']."""
        packed = self._packed
        if packed is None or packed[0] != maps.shape[1:]:
            size = [max(len(maps), 1), *maps.shape[1:]]
            order = torch.ops.mkldnn._reorder_convolution_weight(self.weight, *self._places, size)
            # Several threads may come here at once, each with a copy that is right.
            self._packed = packed = maps.shape[1:], order
        answer: Tensor = torch.ops.mkldnn._convolution_pointwise(
            maps, packed[1], self.bias, *self._places, *self._bend
        )
        return answer

    def __deepcopy__(self, memo: dict[int, Any]) -> nn.Module:
        layers = deepcopy(self._layers, memo)
        return layers[0] if len(layers) == 1 else nn.Sequential(*layers)
