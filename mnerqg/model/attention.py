"""Attention blocks. Shapes: P posts, K queries, L pieces, D width, S positions."""

from collections.abc import Sequence

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
    """Multi-head Attention(Q, K, V) = softmax(Q Kᵀ / √d_head) V with its own projections, of many queries."""

    def __init__(self, *, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width)
        self.value = nn.Linear(width, width)
        self.output = nn.Linear(width, width)

    def forward(self, states: Tensor, keys: Tensor) -> Tensor:
        """[P, T, D] attend to [P, S, D] -> [P, T, D]."""
        queries, keys, values = (
            part.unflatten(-1, (self.heads, -1)).transpose(1, 2)  # [P, heads, T or S, D / heads]
            for part in (self.query(states), self.key(keys), self.value(keys))
        )
        if len(states):
            mixed = F.scaled_dot_product_attention(queries, keys, values)
        else:
            # For nothing at all torch's own kernel answers None on a GPU in bf16. Every projection has a part in the
            # nothing: data-parallel workers wait for the gradient of each.
            mixed = queries + (keys.sum() + values.sum())
        return self.output(mixed.transpose(1, 2).flatten(-2))


class SingleQueryAttention(nn.Module):
    """Attention(Q, K, V) of one head for a single query: it and the weighted mean are projected, no key and no value.

    (W_q h) · (W_k x) is (W_kᵀ W_q h) · x, and Σ w V(x) is V(Σ w x), for the weights add up to 1. The bias of K adds the
    same to the score of every key, which softmax does not see, and is left out.
    """

    def __init__(self, *, width: int) -> None:
        super().__init__()
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width, bias=False)  # W_kᵀ
        self.value = nn.Linear(width, width)
        self.output = nn.Linear(width, width)

    def forward(self, state: Tensor, keys: Sequence[Tensor], mask: Tensor) -> Tensor:
        """[..., D] attends to all of several [..., L, D], of each where `mask` [..., L] is true -> [..., D]."""
        asked = self.key(self.query(state)).unsqueeze(-1)
        scores = torch.cat([part @ asked for part in keys], -1) / state.shape[-1] ** 0.5  # [..., L, parts]
        weights = scores.float().masked_fill(~mask.unsqueeze(-1), float("-inf")).flatten(-2).softmax(-1)
        shares = weights.to(state.dtype).unflatten(-1, scores.shape[-2:]).unbind(-1)
        mixed = sum(share.unsqueeze(-2) @ part for share, part in zip(shares, keys, strict=True))
        return self.output(self.value(mixed.squeeze(-2)))


class LabelAttention(nn.Module):
    """LA(X, E) = X + softmax(X Eᵀ) E with a label table E [2, D]; the paper cites Qin et al. 2021, whose form it is."""

    def __init__(self, *, width: int) -> None:
        super().__init__()
        self.labels = nn.Parameter(torch.empty(2, width))
        nn.init.normal_(self.labels, std=width**-0.5)

    def forward(self, states: Tensor) -> Tensor:
        """[..., D] -> [..., D]."""
        return states + (states @ self.labels.T).softmax(-1) @ self.labels
