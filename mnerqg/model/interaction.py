"""The two interaction modules of Figure 2: cross-modality and existence-aware."""

import torch
from torch import Tensor, nn

from mnerqg.model.attention import CrossAttention, LabelAttention, SingleQueryAttention


class CrossModality(nn.Module):
    """Multi-scale cross-modality interaction: H_i = Attention(H', U_i, U_i), H_a = mean, H_u = H' + FFN([H_a; H']).

    The residual and the zero start of the FFN's last layer are chosen: training begins from the text alone.
    """

    def __init__(self, *, width: int, heads: int, scales: int = 3) -> None:
        super().__init__()
        self.scales = nn.ModuleList(CrossAttention(width=width, heads=heads) for _ in range(scales))
        last = nn.Linear(width, width)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        self.feed_forward = nn.Sequential(nn.Linear(2 * width, width), nn.GELU(), last)

    def forward(self, text: Tensor, maps: tuple[Tensor, ...], shown: Tensor) -> Tensor:
        """H_u of every text position; all queries of a post attend to the same picture, encoded once.

        Args:
            text: H' [P, K, L, D].
            maps: U_1 to U_3, each [I, D, R, R].
            shown: [I] the post of each of them; posts without one have H_a = 0.
        """
        states = text.index_select(0, shown).flatten(1, 2)  # [I, K·L, D]
        attended: Tensor = sum(
            attention(states, grid.flatten(2).transpose(1, 2))  # keys [I, R·R, D]
            for attention, grid in zip(self.scales, maps, strict=True)
        ) / len(self.scales)
        attended = attended.unflatten(1, text.shape[1:3]).to(text.dtype)
        visual = torch.zeros_like(text).index_copy(0, shown, attended)  # H_a
        return text + self.feed_forward(torch.cat([visual, text], -1))


class ExistenceAware(nn.Module):
    """Existence-aware interaction (eq. 2) between start, end and existence states, after label attention.

    For the spans the existence state is the one key, so its softmax is 1 at every piece and the attention
    is its value: Z_s = V(H̃_g). Query and key projections would never receive a gradient and are left out.
    The existence is updated "similarly", over the pieces of start and end together [chosen].
    """

    def __init__(self, *, width: int) -> None:
        super().__init__()
        self.start_labels = LabelAttention(width=width)
        self.end_labels = LabelAttention(width=width)
        self.existence_labels = LabelAttention(width=width)
        self.start_value = nn.Linear(width, width)
        self.end_value = nn.Linear(width, width)
        self.start_norm = nn.LayerNorm(width)
        self.end_norm = nn.LayerNorm(width)
        self.existence_attention = SingleQueryAttention(width=width)
        self.existence_norm = nn.LayerNorm(width)

    def forward(self, fused: Tensor, existence: Tensor, mask: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """H_u [P, K, L, D], H_g [P, K, D], padding mask [P, K, L] -> H̃_s, H̃_e [P, K, L, D] and H̃_g [P, K, D]."""
        start = self.start_labels(fused)  # H_s
        end = self.end_labels(fused)  # H_e
        existence = self.existence_labels(existence)  # [P, K, D]
        aware_start = self.start_norm(start + self.start_value(existence).unsqueeze(-2))
        aware_end = self.end_norm(end + self.end_value(existence).unsqueeze(-2))
        update = self.existence_attention(existence, (start, end), mask)
        return aware_start, aware_end, self.existence_norm(existence + update)
