"""The heads of Figure 2: existence detection, start and end, match, query grounding."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# Log-odds of the prior that a word begins an entity of the asked type. Without it the first hundred steps
# go into learning that most words do not [chosen].
RARE = -4.0


class BinaryHead(nn.Module):
    """softmax(W x + b) over (no, yes): existence (eq. 3), start and end (eq. 4)."""

    def __init__(self, *, width: int, prior: float = 0.0) -> None:
        super().__init__()
        self.project = nn.Linear(width, 2)
        nn.init.constant_(self.project.bias, 0.0)
        self.project.bias.data[1] = prior

    def forward(self, states: Tensor) -> Tensor:
        """[..., D] -> logits [..., 2]."""
        return self.project(states)


@dataclass(frozen=True)
class MatchLogits:
    """The logits of start-end pairs, worked out for those that are asked: [P, K, L, L] of them are too many.

    start_share, end_share: each piece's share of a pair's logit, [P, K, L, 1] or, below a hidden layer, [P, K, L, H].
    hidden: the layer above the two shares' sum; None where the sum is the logit (eq. 5).
    """

    start_share: Tensor
    end_share: Tensor
    hidden: nn.Linear | None = None

    def at(self, pairs: Tensor) -> Tensor:
        """Logits [N] of `pairs` [N, 4] = (post, query, start, end)."""
        post, query, start, end = pairs.unbind(-1)
        row = (post * self.start_share.shape[1] + query) * self.start_share.shape[2]
        starts = self.start_share.flatten(0, 2).index_select(0, row + start)
        ends = self.end_share.flatten(0, 2).index_select(0, row + end)
        # Outside autocast the shares are bf16 and the hidden layer is not.
        both = starts.float() + ends.float()
        return (self.hidden(F.gelu(both)) if self.hidden is not None else both).squeeze(-1)


class MatchHead(nn.Module):
    """Does this start belong to this end: sigmoid(W_m [H̃_s[i]; H̃_e[j]]) (eq. 5).

    W_m is linear, so the logit is a_i + b_j, and [L, L, 2D] is never built. `hidden` puts a layer between
    (Li et al. 2019): its first half is linear too, and only asked pairs pass the rest.
    """

    def __init__(self, *, width: int, hidden: int | None) -> None:
        super().__init__()
        self.start = nn.Linear(width, hidden or 1)
        self.end = nn.Linear(width, hidden or 1, bias=False)
        self.hidden = nn.Linear(hidden, 1) if hidden else None

    def forward(self, start: Tensor, end: Tensor) -> MatchLogits:
        """H̃_s, H̃_e [P, K, L, D] -> the logits of their pairs."""
        return MatchLogits(self.start(start), self.end(end), self.hidden)


class GroundingHead(nn.Module):
    """Query grounding: concat(U_i, q) -> 1x1 conv + BN + ReLU -> 1x1 conv -> A x (tx, ty, tw, th, conf) [paper].

    The convolution over the concatenation is W_u U + W_q q: W_u U is computed once a picture, W_q q once a
    query. One head a scale.

    The paper follows FA-VG (Yang et al. 2019). As there, U and q are L2-normalised over channels, boxes are those of
    YOLOv3 with nine anchors, and the most confident one is the answer. FA-VG has more, which the paper does not
    mention. Its query is detached from the text encoder, and passes two Linear + BN + ReLU before it is normalised:
    these are settings of `Grounding`. The rest we do not have: its query is a mean of [CLS] states (here it is eq. 1 of
    H'); the place of each location is concatenated, too; its fusion has three convolutions, its output two; one softmax
    goes over the confidences of all candidates (here each is a sigmoid, for the BCE of the paper).
    """

    def __init__(self, *, width: int, anchors_per_scale: int, scales: int = 3) -> None:
        super().__init__()
        self.anchors_per_scale = anchors_per_scale
        self.kernel: Callable[..., None] | None = None
        """`kernels.ground` where a scale is one kernel, in eval mode with folded norms (`takes_kernel`)."""
        self.visual = nn.ModuleList(nn.Conv2d(width, width, 1, bias=False) for _ in range(scales))
        self.textual = nn.ModuleList(nn.Linear(width, width, bias=False) for _ in range(scales))
        self.norms = nn.ModuleList(nn.BatchNorm2d(width) for _ in range(scales))
        outputs = [nn.Conv2d(width, 5 * anchors_per_scale, 1) for _ in range(scales)]
        for output in outputs:
            # Of thousands of candidates one is right.
            output.bias.detach().view(anchors_per_scale, 5)[:, 4] = RARE  # type: ignore[union-attr]
        self.outputs = nn.ModuleList(outputs)

    def forward(self, maps: tuple[Tensor, ...], queries: Tensor, shown: Tensor) -> Tensor:
        """Box logits of every candidate.

        Args:
            maps: U_1 to U_3, each [I, D, R, R].
            queries: q [P, K, D].
            shown: [I] the post of each of them.

        Returns:
            [P, K, C, 5] in the candidate order of `boxes.Anchors`; zeros for posts without a picture.
        """
        asked = F.normalize(queries.index_select(0, shown), dim=-1)  # [I, K, D]
        if self.kernel is not None and len(shown):
            logits = self._in_one_kernel(maps, asked)
        else:
            logits = torch.cat([self._scale(scale, grid, asked) for scale, grid in enumerate(maps)], 2)
        return logits.new_zeros(*queries.shape[:2], *logits.shape[2:]).index_copy(0, shown, logits)

    @torch.no_grad()
    def fold_norms(self) -> None:
        """Take the batch normalisation, as it is in eval mode, into what lies before the sum over picture and query.

        It is then computed once a picture and once a query, and not once for each pair of them.
        """
        for scale, norm in enumerate(self.norms):
            if not isinstance(norm, nn.BatchNorm2d):
                continue
            assert norm.running_mean is not None
            assert norm.running_var is not None
            factor = norm.weight * torch.rsqrt(norm.running_var + norm.eps)
            for layers in (self.visual, self.textual):
                weight: Tensor = layers[scale].weight  # type: ignore[assignment]
                factors = factor.reshape(-1, *[1] * (weight.ndim - 1))
                layers[scale].weight = nn.Parameter(weight * factors, requires_grad=False)
            self.textual[scale].bias = nn.Parameter(
                norm.bias - norm.running_mean * factor, requires_grad=False
            )
            self.norms[scale] = nn.Identity()

    def takes_kernel(self, most: int) -> bool:
        """Whether `kernel` says the same as the layers; `most` is `kernels.MOST_OUTPUTS`."""
        convolution = self.visual[0]
        assert isinstance(convolution, nn.Conv2d)
        return convolution.out_channels % 64 == 0 and 5 * self.anchors_per_scale <= most

    def _in_one_kernel(self, maps: tuple[Tensor, ...], asked: Tensor) -> Tensor:
        """Box logits [I, K, C, 5] of the maps and the queries [I, K, D] that are asked of each."""
        assert self.kernel is not None
        candidates = [self.anchors_per_scale * grid.shape[2] * grid.shape[3] for grid in maps]
        logits = asked.new_empty(*asked.shape[:2], sum(candidates), 5, dtype=torch.float32)
        for scale, grid in enumerate(maps):
            visual, textual = self._sides(scale, grid, asked)
            self.kernel(
                visual.contiguous(memory_format=torch.channels_last),
                textual.contiguous(),
                self.outputs[scale].weight.flatten(1),  # type: ignore[operator]
                self.outputs[scale].bias,
                logits,
                sum(candidates[:scale]),
            )
        return logits

    def _sides(self, scale: int, grid: Tensor, asked: Tensor) -> tuple[Tensor, Tensor]:
        """What is added for each picture and query of a scale: W_u U [I, D, R, R] and W_q q [I, K, D]."""
        return self.visual[scale](F.normalize(grid, dim=1)), self.textual[scale](asked)

    def _scale(self, scale: int, grid: Tensor, asked: Tensor) -> Tensor:
        visual, textual = self._sides(scale, grid, asked)
        fused = (visual.unsqueeze(1) + textual[..., None, None]).flatten(0, 1)  # [I·K, D, R, R]
        hidden = F.relu_(self.norms[scale](fused))  # of the largest tensor there is no second
        raw = self.outputs[scale](hidden)  # [I·K, A·5, R, R]
        logits = raw.unflatten(1, (self.anchors_per_scale, 5)).permute(0, 1, 3, 4, 2).flatten(1, 3)
        return logits.unflatten(0, asked.shape[:2]).float()
