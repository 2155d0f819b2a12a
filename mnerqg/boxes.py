"""All box arithmetic: anchors, encoding and decoding, IoU.

Frames: `_px` the original picture, `_canvas` the letterboxed square of `side` pixels. Candidates are ordered
by scale (strides 32, 16, 8), then anchor, row and column; a side of 256 has 3 x (64 + 256 + 1024) = 4032.
Pixels <-> canvas is `inputs.images.Letterbox`.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

STRIDES = (32, 16, 8)
MAX_LOG_SIZE = 4.135  # exp(4.135) = 62.5: no box can grow past any canvas in use

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Anchors:
    """The anchors of a canvas and the geometry of its candidates.

    Args:
        sizes: nine (width, height), three a scale from stride 32 on, at `reference_side` scale [FA-VG].
        reference_side: side of the canvas the sizes are given for.
        side: side of the canvas in use, pixels.
    """

    sizes: Sequence[tuple[float, float]]
    reference_side: int
    side: int

    @property
    def sizes_canvas(self) -> Floats:
        """[9, 2] widths and heights in canvas pixels."""
        return np.asarray(self.sizes, np.float32) * (self.side / self.reference_side)

    @property
    def per_scale(self) -> int:
        return len(self.sizes) // len(STRIDES)

    @property
    def grids(self) -> tuple[int, ...]:
        """R of each scale."""
        return tuple(self.side // stride for stride in STRIDES)

    @property
    def candidates(self) -> int:
        return sum(self.per_scale * grid * grid for grid in self.grids)

    def candidate_index(self, anchor: int, row: int, column: int) -> int:
        """Position of an anchor (0 to 8) at a cell of its own scale's grid."""
        scale, within = divmod(anchor, self.per_scale)
        before = sum(self.per_scale * grid * grid for grid in self.grids[:scale])
        grid = self.grids[scale]
        return before + (within * grid + row) * grid + column

    def table(self) -> Floats:
        """[C, 5] of every candidate: cell column, cell row, stride, anchor width, anchor height (canvas)."""
        rows = []
        for scale, (grid, stride) in enumerate(zip(self.grids, STRIDES, strict=True)):
            row, column = np.meshgrid(np.arange(grid), np.arange(grid), indexing="ij")
            for width, height in self.sizes_canvas[scale * self.per_scale : (scale + 1) * self.per_scale]:
                cells = np.stack([column, row], -1).reshape(-1, 2)
                rest = np.tile(np.asarray([stride, width, height]), (grid * grid, 1))
                rows.append(np.concatenate([cells, rest], 1))
        return np.concatenate(rows).astype(np.float32)


@dataclass(frozen=True, slots=True)
class Assignment:
    """Where a gold box is learned: its candidate, the targets (σ(tx), σ(ty), tw, th), candidates to ignore."""

    candidate: int
    target: tuple[float, float, float, float]
    ignored: tuple[int, ...]


def assign(xyxy_canvas: Floats, anchors: Anchors, ignore_iou: float) -> Assignment | None:
    """Encode one gold box: best of nine anchors by centred IoU, the cell of its centre.

    Returns None for a box of which less than a pixel lies on the canvas.
    """
    x_min, y_min, x_max, y_max = np.clip(xyxy_canvas, 0, anchors.side).tolist()
    width, height = x_max - x_min, y_max - y_min
    if width < 1 or height < 1:
        return None
    sizes = anchors.sizes_canvas
    iou = centred_iou(np.asarray([width, height], np.float32), sizes)
    best = int(iou.argmax())
    centre_x, centre_y = (x_min + x_max) / 2, (y_min + y_max) / 2

    def locate(anchor: int) -> tuple[int, int, int]:
        stride = STRIDES[anchor // anchors.per_scale]
        last = anchors.side // stride - 1
        return stride, min(int(centre_y / stride), last), min(int(centre_x / stride), last)

    stride, row, column = locate(best)
    target = (
        centre_x / stride - column,
        centre_y / stride - row,
        float(np.log(width / sizes[best, 0])),
        float(np.log(height / sizes[best, 1])),
    )
    ignored = tuple(
        anchors.candidate_index(anchor, *locate(anchor)[1:])
        for anchor in np.flatnonzero(iou > ignore_iou).tolist()
        if anchor != best
    )
    return Assignment(anchors.candidate_index(best, row, column), target, ignored)


def decode(box_logits: Tensor, table: Tensor) -> Tensor:
    """Boxes of candidates: centre = (σ(t) + cell) · stride, size = exp(min(t, 4.135)) · anchor.

    Args:
        box_logits: [..., 4] or [..., 5] raw (tx, ty, tw, th, conf).
        table: [..., 5] rows of `Anchors.table` for the same candidates.

    Returns:
        [..., 4] xyxy in canvas pixels, not clipped.
    """
    centre = (box_logits[..., :2].sigmoid() + table[..., :2]) * table[..., 2:3]
    size = box_logits[..., 2:4].clamp(max=MAX_LOG_SIZE).exp() * table[..., 3:5]
    return torch.cat([centre - size / 2, centre + size / 2], -1)


def centred_iou(size: Floats, sizes: Floats) -> Floats:
    """IoU of boxes that share a centre: [2] against [N, 2] -> [N]."""
    inner = np.minimum(size, sizes).prod(-1)
    union = size.prod() + sizes.prod(-1) - inner
    iou: Floats = inner / union
    return iou


def iou_xyxy(one: Floats, others: Floats) -> Floats:
    """IoU of one box [4] with others [N, 4] -> [N], all in one frame; 0 where both are empty."""
    top_left = np.maximum(one[:2], others[:, :2])
    bottom_right = np.minimum(one[2:], others[:, 2:])
    inner = (bottom_right - top_left).clip(min=0).prod(-1)
    union = (one[2:] - one[:2]).prod() + (others[:, 2:] - others[:, :2]).prod(-1) - inner
    iou: Floats = np.divide(inner, union, out=np.zeros_like(inner), where=union > 0)
    return iou
