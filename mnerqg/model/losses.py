"""The joint loss L = ω_f L_QG + λ1 L_ED + λ2 L_ESP (eq. 6) as sums over counts.

Under data parallelism both the sum and the count of each term are reduced over the workers, so that N workers
on a batch give the gradient of one worker on the same batch, however the boxes and answers are spread.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from mnerqg.config import LossConfig
from mnerqg.inputs.batch import Batch, Targets
from mnerqg.model.output import Output, SpanLogits

TERMS = ("box", "object_positive", "object_negative", "existence", "start", "end", "match", "words")


@dataclass(frozen=True)
class LossTerms:
    """Sum and count of each of `TERMS`, two [8] tensors; only the sums carry gradients."""

    sums: Tensor
    counts: Tensor


def loss_terms(output: Output, batch: Batch) -> LossTerms:
    """The terms of one worker's share of a batch; what a variant does not answer counts nothing.

    Args:
        output: of the network for the batch.
        batch: P posts with their targets. L_start is taken over its `begins_word`, L_end over its `ends_word`.

    Raises:
        ValueError: the batch has no targets.
    """
    targets = batch.targets
    if targets is None:
        raise ValueError("a batch without targets has no loss; collate it with_targets=True")
    nothing = batch.input_ids.new_zeros((), dtype=torch.float32), 0
    terms = dict.fromkeys(TERMS, nothing)
    if output.box_logits is not None:
        terms |= _grounding(output.box_logits, targets)
    if output.spans is not None:
        terms |= _spans(output.spans, batch, targets)
    if output.words is not None:
        terms["words"] = output.words.loss(targets.labels, batch.begins_word[:, 0])
    return LossTerms(
        torch.stack([total for total, _ in terms.values()]),
        torch.tensor(
            [count for _, count in terms.values()], dtype=torch.float32, device=batch.input_ids.device
        ),
    )


def _grounding(box_logits: Tensor, targets: Targets) -> dict[str, tuple[Tensor, int]]:
    """L_bbox (MSE on σ(tx), σ(ty), tw, th) and L_object (BCE), as the paper says.

    FA-VG has a softmax over all candidates in the place of the BCE. Positives and negatives are apart [chosen].
    Negatives count by the pair and are weighted by the square of their score (focal loss, Lin et al. 2017).
    In a mean over thousands of candidates the one false box that wins the arg max has no weight: with it a
    model of 16 posts stayed at Accu@0.5 = 0.66 with every box learned exactly.
    """
    assigned = box_logits[targets.box_candidates.unbind(-1)]  # [M, 5]
    predicted = torch.cat([assigned[:, :2].sigmoid(), assigned[:, 2:4]], -1)
    box = F.mse_loss(predicted, targets.box_targets, reduction="sum")
    confidence = box_logits[..., 4]  # [P, K, C]
    positive = confidence[targets.objectness == 1]
    background = targets.objectness == 0
    negative = confidence[background]
    missed = (negative.sigmoid().square() * F.softplus(negative)).sum()
    return {
        "box": (box, len(assigned)),
        "object_positive": (F.softplus(-positive).sum(), len(positive)),
        "object_negative": (missed, int(background.any(-1).sum())),
    }


def _spans(spans: SpanLogits, batch: Batch, targets: Targets) -> dict[str, tuple[Tensor, int]]:
    """L_ED, and the three parts of L_ESP."""
    begins, ends = batch.begins_word, batch.ends_word
    return {
        "existence": _cross_entropy(spans.existence_logits, targets.existence),
        "start": _cross_entropy(spans.start_logits[begins], targets.starts[begins]),
        "end": _cross_entropy(spans.end_logits[ends], targets.ends[ends]),
        "match": _match(spans, batch, targets),
    }


def _cross_entropy(logits: Tensor, labels: Tensor) -> tuple[Tensor, int]:
    known = labels >= 0
    return F.cross_entropy(logits[known].float(), labels[known], reduction="sum"), int(known.sum())


def _match(spans: SpanLogits, batch: Batch, targets: Targets) -> tuple[Tensor, int]:
    """BCE over gold starts x gold ends and predicted starts x predicted ends, start ≤ end."""
    pairs = torch.cat(
        [
            candidate_pairs(targets.starts > 0, targets.ends > 0),
            candidate_pairs(
                (spans.start_logits.argmax(-1) > 0) & batch.begins_word,
                (spans.end_logits.argmax(-1) > 0) & batch.ends_word,
            ),
        ]
    ).unique(dim=0)
    gold = {tuple(row) for row in targets.matches.tolist()}
    labels = torch.tensor(
        [tuple(pair) in gold for pair in pairs.tolist()], dtype=torch.float32, device=pairs.device
    )
    logits = spans.match.at(pairs).float()
    return F.binary_cross_entropy_with_logits(logits, labels, reduction="sum"), len(pairs)


def candidate_pairs(starts: Tensor, ends: Tensor) -> Tensor:
    """All (post, query, start, end) [N, 4] with start ≤ end from two masks [P, K, L]."""
    post, query, start = starts.nonzero().unbind(-1)
    at_start, end = ends[post, query].nonzero().unbind(-1)
    pairs = torch.stack([post[at_start], query[at_start], start[at_start], end], -1)
    return pairs[pairs[:, 2] <= pairs[:, 3]]


@dataclass(frozen=True)
class JointLoss:
    """One step's loss: `total` to go backward from, of one worker's share, and what to log (global, no gradient)."""

    total: Tensor
    value: Tensor
    grounding: Tensor
    existence: Tensor
    spans: Tensor
    balance: float


class LossBalance:
    """ω_f and the weighted sum (eq. 6).

    The paper says that ω_f is dynamic and leaves how to its appendix. "dynamic" is stop-gradient
    clamp(EMA(λ1 L_ED + λ2 L_ESP) / EMA(L_QG), min, max) [chosen]. The averages are kept term by term, and a step
    moves those alone of which it has a count: one without annotated pictures says nothing of L_QG. They are part of
    the training state. L_QG also has a weight of its own, 1 but in the ablation "w/o QG loss".
    """

    def __init__(self, config: LossConfig) -> None:
        self.config = config
        self.running: list[float | None] = [None] * len(
            TERMS
        )  # EMA of each term's mean; None before its first count

    def __call__(
        self, terms: LossTerms, reduce: Callable[[Tensor], Tensor] = lambda x: x, workers: int = 1
    ) -> JointLoss:
        """Combine one worker's terms.

        Args:
            terms: of this worker.
            reduce: sums a tensor over all workers (no gradient needed).
            workers: how many; gradients are averaged over them afterwards, as DDP does.
        """
        sums, counts = reduce(torch.stack([terms.sums.detach(), terms.counts])).unbind()
        means = sums / counts.clamp(min=1)
        balance = self._balance(means, counts) if self.config.balance == "dynamic" else 1.0
        everywhere = self._losses(means)
        mine = self._losses(workers * terms.sums / counts.clamp(min=1))
        return JointLoss(
            self._weighted(mine, balance), self._weighted(everywhere, balance), *everywhere, balance=balance
        )

    def _weighted(self, losses: tuple[Tensor, Tensor, Tensor], balance: float) -> Tensor:
        config = self.config
        grounding, existence, spans = losses
        return (
            balance * config.grounding_weight * grounding
            + config.existence_weight * existence
            + config.span_weight * spans
        )

    def _losses(self, means: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        box, positive, negative, existence, start, end, match, words = means.unbind()
        return self.config.box_weight * box + positive + negative, existence, start + end + match + words

    def _balance(self, means: Tensor, counts: Tensor) -> float:
        config = self.config
        momentum = config.balance_momentum
        self.running = [
            before if count == 0 else mean if before is None else momentum * before + (1 - momentum) * mean
            for before, mean, count in zip(self.running, means.tolist(), counts.tolist(), strict=True)
        ]
        known = torch.tensor([0.0 if average is None else average for average in self.running])
        grounding, existence, spans = (float(loss) for loss in self._losses(known))
        # A loss that is taken away (λ1 = 0) does not steer the others either.
        ratio = (config.existence_weight * existence + config.span_weight * spans) / max(grounding, 1e-6)
        return min(max(ratio, config.balance_min), config.balance_max)
