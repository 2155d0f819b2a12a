"""Attention blocks. Shapes: P posts, K queries, L pieces, D width, S positions."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class AttentivePooling(nn.Module):
    """One vector from many (eq. 1): weights softmax(w · tanh(W x + b)) [chosen form]."""

    def __init__(self, *, width: int) -> None:
        super().__init__()
        self.project = nn.Linear(width, width)
        self.score = nn.Linear(width, 1, bias=False)

    def forward(self, states: Tensor, mask: Tensor) -> Tensor:
        """Pool [..., L, D] over the positions where `mask` [..., L] is true (at least one) -> [..., D]."""
        scores = self.score(torch.tanh(self.project(states))).squeeze(-1)  # [..., L]
        weights = scores.float().masked_fill(~mask, float("-inf")).softmax(-1).to(states.dtype)
        return (weights.unsqueeze(-2) @ states).squeeze(-2)


class CrossAttention(nn.Module):
    """Multi-head Attention(Q, K, V) = softmax(Q Kᵀ / √d_head) V with its own projections."""

    def __init__(self, *, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width)
        self.value = nn.Linear(width, width)
        self.output = nn.Linear(width, width)

    def forward(self, states: Tensor, keys: Tensor, mask: Tensor | None = None) -> Tensor:
        """[P, T, D] attend to [P, S, D]; `mask` [P, S] is true where a key may be seen -> [P, T, D]."""
        queries, keys, values = (
            part.unflatten(-1, (self.heads, -1)).transpose(1, 2)  # [P, heads, T or S, D / heads]
            for part in (self.query(states), self.key(keys), self.value(keys))
        )
        seen = None if mask is None else mask[:, None, None, :]
        if len(states):
            mixed = F.scaled_dot_product_attention(queries, keys, values, attn_mask=seen)
        else:
            # For nothing at all torch's own kernel answers None on a GPU in bf16. Every projection has a part in the
            # nothing: data-parallel workers wait for the gradient of each.
            mixed = queries + (keys.sum() + values.sum())
        return self.output(mixed.transpose(1, 2).flatten(-2))


class LabelAttention(nn.Module):
    """LA(X, E) = X + softmax(X Eᵀ) E with a label table E [2, D]; the paper cites Qin et al. 2021, whose form it is."""

    def __init__(self, *, width: int) -> None:
        super().__init__()
        self.labels = nn.Parameter(torch.empty(2, width))
        nn.init.normal_(self.labels, std=width**-0.5)

    def forward(self, states: Tensor) -> Tensor:
        """[..., D] -> [..., D]."""
        return states + (states @ self.labels.T).softmax(-1) @ self.labels
