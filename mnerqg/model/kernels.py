"""Triton kernels for what torch would do in several passes over large tensors of a GPU.

Imported where the network runs on one; `TRITON_INTERPRET=1` runs them on a CPU.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

_VALUES = 4096  # of a program of `add_bias_and_leak_`
_LOCATIONS, _FEATURES = 64, 64  # of a program of `ground`, and of each of its products
MOST_OUTPUTS = 16
"""Values that `ground` answers a location at the most: a tile of a tensor core."""


def add_bias_and_leak_(maps: Tensor, bias: Tensor, slope: float) -> Tensor:
    """leaky_relu(maps + bias) in the place of the maps, in one pass.

    Args:
        maps: [I, C, H, W] in channels_last order.
        bias: [C].
        slope: the factor of values below zero; 0 for a ReLU.
    """
    values = maps.numel()
    _add_bias_and_leak[(triton.cdiv(values, _VALUES),)](
        maps, bias, values, maps.shape[1], slope, block=_VALUES, num_warps=8
    )
    return maps


def ground(visual: Tensor, textual: Tensor, weight: Tensor, bias: Tensor, boxes: Tensor, start: int) -> None:
    """One scale of the grounding: weight · relu(visual + textual) + bias, whose sum over pictures and queries is never
    laid down.

    Args:
        visual: [I, D, R, R] in channels_last order; D is a multiple of 64.
        textual: [I, K, D].
        weight: [A · 5, D]; bias: [A · 5], at most `MOST_OUTPUTS` of them.
        boxes: [I, K, C, 5] float32, into which the A · R · R candidates from `start` on are written, by anchor, row and
            column.
        start: see `boxes`.
    """
    pictures, width, rows, columns = visual.shape
    queries, candidates = textual.shape[1], boxes.shape[2]
    locations = rows * columns
    _ground[(pictures * queries, triton.cdiv(locations, _LOCATIONS))](
        visual,
        textual,
        weight,
        bias,
        boxes,
        queries,
        locations,
        candidates,
        start,
        width=width,
        outputs=weight.shape[0],
        most=MOST_OUTPUTS,
        block=_LOCATIONS,
        features=_FEATURES,
        precision="ieee" if visual.dtype == torch.float32 else "tf32",
        num_warps=4,
    )


def try_out(device: torch.device) -> None:
    """Build both for a device; raises whatever Triton raises where it cannot."""
    maps = torch.zeros(1, 64, 2, 2, device=device, dtype=torch.bfloat16).to(memory_format=torch.channels_last)
    add_bias_and_leak_(maps, maps[0, :, 0, 0].contiguous(), 0.1)
    weight = maps.new_zeros(15, 64)
    boxes = torch.zeros(1, 1, 12, 5, device=device)
    ground(maps, maps.new_zeros(1, 1, 64), weight, weight[:, 0].contiguous(), boxes, 0)
    torch.cuda.synchronize(device)


@triton.jit
def _add_bias_and_leak(maps, bias, values, channels, slope, block: tl.constexpr):  # type: ignore[no-untyped-def]
    place = tl.program_id(0).to(tl.int64) * block + tl.arange(0, block)
    inside = place < values
    sums = tl.load(maps + place, mask=inside, other=0.0).to(tl.float32)
    sums += tl.load(bias + place % channels).to(tl.float32)
    tl.store(maps + place, tl.where(sums > 0, sums, sums * slope), mask=inside)


@triton.jit
def _ground(  # type: ignore[no-untyped-def]
    visual,
    textual,
    weight,
    bias,
    boxes,
    queries,
    locations,
    candidates,
    start,
    width: tl.constexpr,
    outputs: tl.constexpr,
    most: tl.constexpr,
    block: tl.constexpr,
    features: tl.constexpr,
    precision: tl.constexpr,
):
    pair = tl.program_id(0).to(tl.int64)
    location = tl.program_id(1) * block + tl.arange(0, block)
    inside = location < locations
    output = tl.arange(0, most)
    sums = tl.zeros((block, most), tl.float32)
    row = (pair // queries) * locations + location
    for first in range(0, width, features):
        feature = first + tl.arange(0, features)
        seen = tl.load(visual + row[:, None] * width + feature[None, :], mask=inside[:, None], other=0.0)
        asked = tl.load(textual + pair * width + feature)
        hidden = tl.maximum(seen.to(tl.float32) + asked.to(tl.float32)[None, :], 0.0).to(seen.dtype)
        weights = tl.load(
            weight + output[None, :] * width + feature[:, None], mask=output[None, :] < outputs, other=0.0
        )
        sums += tl.dot(hidden, weights, input_precision=precision)
    sums += tl.load(bias + output, mask=output < outputs, other=0.0).to(tl.float32)[None, :]
    candidate = start + (output // 5)[None, :] * locations + location[:, None]
    place = boxes + (pair * candidates + candidate) * 5 + (output % 5)[None, :]
    tl.store(place, sums, mask=inside[:, None] & (output[None, :] < outputs))
