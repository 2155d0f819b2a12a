"""A network made ready to answer: the same answers as in eval mode, in less time.

Batch normalisation goes into the convolutions before it, which is exact but for rounding. The weights are cast once to
the type in which the device multiplies; autocast would cast them in every call.
"""

import logging
from collections.abc import Callable, Sequence
from copy import deepcopy
from itertools import chain
from typing import Any, Final, TypeVar

import torch
import torch.nn.functional as F
from timm.layers import BatchNormAct2d, Conv2dSame
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights
from torchcrf import CRF
from transformers.activations import GELUActivation

from mnerqg.inputs.batch import Texts
from mnerqg.model.backbone import VisualEncoder
from mnerqg.model.build import Network
from mnerqg.model.encoder import encoder_states, take_sdpa
from mnerqg.model.mnerqg import MNERQG
from mnerqg.model.packing import ACTIVATIONS, PackedConvolution, can_pack, pack, takes

# How far folded maps may be from the others, in shares of their largest value: rounding stays far below it, and a
# normalisation that was taken into the wrong convolution far above.
_CLOSE: Final = 1e-3
# Of the picture, pixels, and the text, pieces, of a trial pass: which layers follow each other does not depend on them.
_SIDE: Final = 64
_PIECES: Final = 4
_GELU: Final = (nn.GELU, GELUActivation)

N = TypeVar("N", bound=nn.Module)
_log = logging.getLogger(__name__)


def ready_to_answer(
    network: Network,
    *,
    device: torch.device,
    dtype: torch.dtype = torch.float32,
    compiled: bool = False,
) -> Network:
    """A copy on `device` that no longer learns; the network itself stays as it is.

    Args:
        network: in any mode.
        device: where the copy answers.
        dtype: of its weights, float32 or bfloat16. What is computed of the logits, and sums and means within torch's
            kernels, are float32 either way.
        compiled: whether it is to be compiled; torch's compiler packs weights by itself.
    """
    # On the CPU: a GPU multiplies float32 so that what is folded would not seem to say the same.
    ready = _with_same_weights(network).to("cpu").eval()
    packs = device.type == "cpu" and dtype == torch.float32 and not compiled and can_pack()
    if isinstance(ready, MNERQG):
        if ready.visual is not None:
            ready.visual = _with_folded_norms(ready.visual)
            if device.type == "cpu":
                _pad_within_convolutions(ready.visual)
        if ready.grounding is not None:
            ready.grounding.head.fold_norms()
            ready.grounding.head.kernel = None  # of a network that was made ready before
    if device.type == "cpu":
        _copy_shared(ready, network)
    if isinstance(ready, MNERQG):
        if packs and ready.visual is not None:
            ready.visual = _with_fused_activations(ready.visual)
        if device.type == "cuda" and not compiled:
            _take_kernels(ready, device)
    if device.type == "cuda":
        holder = ready.text if isinstance(ready, MNERQG) else ready
        take_sdpa(holder.encoder)
        if dtype == torch.bfloat16 and not compiled:
            holder.encoder = _with_gelus_in_products(holder.encoder)
    _cast(ready, dtype)
    ready = ready.to(device)
    if packs:
        pack(ready)
    return ready


def _with_same_weights(network: N) -> N:
    """A copy that does not learn. Its parts are its own, but their values lie where the network's do: what is to be
    changed of them has to be replaced."""
    copies: dict[int, Any] = {id(buffer): buffer for buffer in network.buffers()}
    for parameter in network.parameters():
        copies[id(parameter)] = nn.Parameter(parameter.detach(), requires_grad=False)
    return deepcopy(network, copies)


def _copy_shared(ready: nn.Module, network: nn.Module) -> None:
    """Give `ready` values of its own where it has the network's still."""
    tensors = chain(network.parameters(), network.buffers())
    shared = {tensor.untyped_storage().data_ptr() for tensor in tensors}
    for part in ready.modules():
        for parameter in part.parameters(recurse=False):
            if parameter.untyped_storage().data_ptr() in shared:
                parameter.data = parameter.data.clone()
        for name, buffer in list(part.named_buffers(recurse=False)):
            if buffer.untyped_storage().data_ptr() in shared:
                part._buffers[name] = buffer.clone()


def compile_parts(network: Network, **options: Any) -> None:
    """Compile each part by itself, for any number of posts, pieces and pictures, at its next calls.

    Apart, for the encoder is called once for each group of texts, and how many there are would make other graphs.
    What is compiled is kept in torch's cache on the machine. `options` are further ones of torch.compile.
    """
    parts: list[nn.Module | None] = [network.encoder]
    if isinstance(network, MNERQG):
        parts += [network.visual, network.cross_modality, network.spans, network.grounding]
    for part in parts:
        if part is not None:
            part.compile(dynamic=True, **options)


class LeakingConvolution(nn.Module):
    """A convolution and the leaky ReLU behind it: bias and leak are one pass over the map in the place of two.

    Args:
        convolution: has a bias.
        slope: of the leak; 0 is a ReLU.
        kernel: `kernels.add_bias_and_leak_`.
    """

    def __init__(
        self, convolution: nn.Conv2d, slope: float, kernel: Callable[[Tensor, Tensor, float], Tensor]
    ) -> None:
        super().__init__()
        assert convolution.bias is not None
        self.bias = nn.Parameter(convolution.bias.detach(), requires_grad=False)
        self.convolution = convolution
        self.convolution.bias = None
        self.slope = slope
        self._kernel = kernel

    def forward(self, maps: Tensor) -> Tensor:
        """[I, C, H, W] -> [I, C', H', W']."""
        maps = self.convolution(maps).contiguous(memory_format=torch.channels_last)
        if maps.device.type == "cpu" or not len(maps):
            return F.leaky_relu_(maps.add_(self.bias[:, None, None]), self.slope)
        return self._kernel(maps, self.bias, self.slope)


class GeluLinear(nn.Module):
    """A linear layer and the GELU behind it, which cuBLAS multiplies and bends in one: by the tanh that GELU is near.

    The two are 0.0005 apart at the most.

    Args:
        layer: has a bias.
    """

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        self.weight, self.bias = layer.weight, layer.bias

    def forward(self, states: Tensor) -> Tensor:
        """[..., in] -> [..., out]."""
        flat = states.flatten(0, -2)
        bent: Tensor = torch._addmm_activation(self.bias, flat, self.weight.T, use_gelu=True)
        return bent.unflatten(0, states.shape[:-1])


def _with_gelus_in_products(encoder: nn.Module) -> nn.Module:
    """The text encoder with each GELU in the linear layer that it is given the output of; exact on a CPU."""

    def join(joined: nn.Module, activation: str, linear: str) -> None:
        layer = joined.get_submodule(linear)
        if type(layer) is nn.Linear and layer.bias is not None:
            _replace(joined, linear, GeluLinear(layer))
            _replace(joined, activation, nn.Identity())

    pieces = torch.arange(_PIECES)[None]
    texts = Texts(pieces, torch.zeros_like(pieces), pieces >= 0)
    return _with_joined(encoder, lambda given: [encoder_states(given, texts)], nn.Linear, _GELU, join)


def _take_kernels(network: MNERQG, device: torch.device) -> None:
    """Use our kernels on a GPU where the network is made so that they say the same, and Triton can build them."""
    try:
        from mnerqg.model import kernels

        kernels.try_out(device)
    # There may be no Triton, no C compiler, no place for what it builds, or a GPU that it does not know.
    except Exception as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        _log.warning("our kernels cannot be built for this GPU, and the model is slower without: %s", reason)
        return
    if network.visual is not None:
        network.visual = _with_leaking_convolutions(network.visual, kernels.add_bias_and_leak_)
    if network.grounding is not None and network.grounding.head.takes_kernel(kernels.MOST_OUTPUTS):
        network.grounding.head.kernel = kernels.ground


def _with_leaking_convolutions(
    visual: VisualEncoder, kernel: Callable[[Tensor, Tensor, float], Tensor]
) -> VisualEncoder:
    """The encoder with every ReLU, leaky or not, within the convolution that it is given the output of."""

    def join(joined: VisualEncoder, name: str, convolution: str) -> None:
        layer, activation = joined.get_submodule(convolution), joined.get_submodule(name)
        assert isinstance(layer, nn.Conv2d)
        if layer.bias is not None:
            slope = float(getattr(activation, "negative_slope", 0.0))
            _replace(joined, convolution, LeakingConvolution(layer, slope, kernel))
            _replace(joined, name, nn.Identity())

    return _with_joined(visual, _maps, nn.Conv2d, (nn.ReLU, nn.LeakyReLU), join)


def _with_fused_activations(visual: VisualEncoder) -> VisualEncoder:
    """The encoder with every activation that oneDNN knows within the convolution that it is given the output of."""

    def join(joined: VisualEncoder, name: str, convolution: str) -> None:
        layer, activation = joined.get_submodule(convolution), joined.get_submodule(name)
        if takes(layer) and type(activation) in ACTIVATIONS:
            _replace(joined, convolution, PackedConvolution(layer, activation))
            _replace(joined, name, nn.Identity())

    return _with_joined(visual, _maps, nn.Conv2d, ACTIVATIONS, join)


def _cast(network: Network, dtype: torch.dtype) -> None:
    """Cast the parameters, but not those of norms with stored statistics, nor of what takes logits and no states.

    Buffers stay as they are: statistics, positions, and by what pixels are scaled.
    """
    exact = {part for part in network.modules() if isinstance(part, CRF | nn.modules.batchnorm._BatchNorm)}
    if isinstance(network, MNERQG) and network.spans is not None and network.spans.match.hidden is not None:
        exact.add(network.spans.match.hidden)
    for part in network.modules():
        for parameter in part.parameters(recurse=False) if part not in exact else ():
            parameter.data = parameter.data.to(dtype)


def _with_folded_norms(visual: VisualEncoder) -> VisualEncoder:
    """The encoder with every normalisation in the convolution whose output it is given."""
    return _with_joined(visual, _maps, nn.Conv2d, (nn.BatchNorm2d,), _fold)


def _maps(visual: VisualEncoder) -> Sequence[Tensor]:
    """Of a made-up picture."""
    noise = torch.Generator().manual_seed(0)
    pixels = torch.randint(256, (1, 3, _SIDE, _SIDE), dtype=torch.uint8, generator=noise)
    return visual(pixels)


@torch.inference_mode(mode=False)
@torch.no_grad()
def _with_joined(
    network: N,
    run: Callable[[N], Sequence[Tensor]],
    layers: type[nn.Module],
    kinds: tuple[type[nn.Module], ...],
    join: Callable[[N, str, str], None],
) -> N:
    """The network with every part of the given kinds joined with the layer whose output it is given.

    Which one that is shows a trial pass, whatever the network is made of. Where it no longer answers the same, for
    something else took a layer's output too, all is left as it was; so it is where a trial pass fails, as one does of
    backbones for pictures of one size.

    Args:
        network: on the CPU; stays as it is.
        run: answers something made up.
        layers: their kind.
        kinds: of the parts.
        join: is given the network, and the names of the part and of its layer.
    """
    joined = _with_same_weights(network)
    try:
        pairs, expected = _pairs(joined, lambda: run(joined), layers, kinds)
        for part, layer in pairs.items():
            join(joined, part, layer)
        answers = run(joined)
    except Exception:
        return network
    close = all(
        torch.allclose(found, one, rtol=0, atol=_CLOSE * float(one.abs().max()))
        for found, one in zip(answers, expected, strict=True)
    )
    return joined if close else network


def _pairs(
    network: nn.Module,
    run: Callable[[], Any],
    layers: type[nn.Module],
    kinds: tuple[type[nn.Module], ...],
) -> tuple[dict[str, str], Sequence[Tensor]]:
    """The parts of these kinds that are given what a layer has just answered, with that one's name, and what a run of
    the network answers."""
    answers: list[tuple[Tensor, int, str]] = []
    pairs: dict[str, str] = {}
    hooks = []
    for name, module in network.named_modules():
        if isinstance(module, layers):

            def answered(_layer: nn.Module, _inputs: Any, output: Tensor, name: str = name) -> None:
                answers.append((output, output._version, name))

            hooks.append(module.register_forward_hook(answered))
        elif isinstance(module, kinds):

            def asked(_part: nn.Module, inputs: tuple[Tensor], name: str = name) -> None:
                if not answers:
                    return
                answer, version, layer = answers[-1]
                # Something may have been added to it in place, as residual blocks do.
                if answer is inputs[0] and answer._version == version:
                    pairs[name] = layer

            hooks.append(module.register_forward_pre_hook(asked))
    found = [answer.clone() for answer in run()]
    for hook in hooks:
        hook.remove()
    return pairs, found


def _pad_within_convolutions(visual: VisualEncoder) -> None:
    """Let convolutions of TensorFlow's padding pad by themselves: timm copies the whole map into a larger one first.

    That padding is one wider behind the map than before it where a kernel's odd side meets an even stride. A kernel
    with a row and a column of zeros before its own, padded alike on both sides, says the same. Maps have even sides
    wherever one is halved, since the canvas's is a multiple of the coarsest stride.
    """
    for holder in list(visual.modules()):
        for name, convolution in list(holder.named_children()):
            if isinstance(convolution, Conv2dSame) and set(convolution.dilation) == {1}:
                setattr(holder, name, padding_by_itself(convolution))


def padding_by_itself(convolution: Conv2dSame) -> nn.Conv2d:
    """A convolution that says the same of maps whose sides are multiples of its stride."""
    before, behind, zeros = [], [], []
    for size, stride in zip(convolution.kernel_size, convolution.stride, strict=True):
        padding = max(size - stride, 0)
        before.append(padding // 2)
        behind.append(padding - padding // 2)
        zeros.append(behind[-1] - before[-1])
    rows, columns = zeros
    same = nn.Conv2d(
        convolution.in_channels,
        convolution.out_channels,
        (convolution.kernel_size[0] + rows, convolution.kernel_size[1] + columns),
        stride=convolution.stride,
        padding=tuple(behind),
        groups=convolution.groups,
        bias=convolution.bias is not None,
        device=convolution.weight.device,
    )
    weight = nn.functional.pad(convolution.weight, (columns, 0, rows, 0))
    same.weight = nn.Parameter(weight.contiguous(memory_format=torch.channels_last), requires_grad=False)
    same.bias = convolution.bias
    return same


def _fold(visual: VisualEncoder, name: str, convolution: str) -> None:
    """Take the normalisation of that name into the convolution; its activation, if it has one, stays in its place."""
    norm, layer = visual.get_submodule(name), visual.get_submodule(convolution)
    assert isinstance(norm, nn.BatchNorm2d)
    assert isinstance(layer, nn.Conv2d)
    assert norm.running_mean is not None
    assert norm.running_var is not None
    layer.weight, bias = fuse_conv_bn_weights(
        layer.weight, layer.bias, norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias
    )
    layer.bias = bias.requires_grad_(False)
    layer.weight.requires_grad_(False)
    left: nn.Module = nn.Identity()
    if isinstance(norm, BatchNormAct2d):
        left = nn.Sequential(norm.drop, norm.act)
    _replace(visual, name, left)


def _replace(network: nn.Module, name: str, part: nn.Module) -> None:
    holder, _, attribute = name.rpartition(".")
    setattr(network.get_submodule(holder), attribute, part)
