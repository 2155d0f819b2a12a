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

# Of wrong pairs so many a piece teach at the most, on average over a batch; of more, the first [chosen]. A network that
# says so much has hardly begun to learn.
_PREDICTED_PAIRS = 4
TERMS = ("box", "object_positive", "object_negative", "existence", "start", "end", "match", "words")


@dataclass(frozen=True)
class LossTerms:
    """Sum and count of each of `TERMS`, two [8] tensors; only the sums carry gradients."""

    sums: Tensor
    counts: Tensor


def loss_terms(output: Output, batch: Batch, config: LossConfig) -> LossTerms:
    """The terms of one worker's share of a batch; what a variant does not answer counts nothing.

    Args:
        output: of the network for the batch.
        batch: P posts with their targets. L_start is taken over its `begins_word`, L_end over its `ends_word`.
        config: says what L_ESP counts; the weights are `LossBalance`'s.

    Raises:
        ValueError: the batch has no targets.
    """
    targets = batch.targets
    if targets is None:
        raise ValueError("a batch without targets has no loss; collate it with_targets=True")
    zero = batch.begins_word.new_zeros((), dtype=torch.float32)
    nothing = zero, zero
    terms = dict.fromkeys(TERMS, nothing)
    if output.box_logits is not None:
        terms |= _grounding(output.box_logits, targets, config)
    if output.spans is not None:
        terms |= _spans(output.spans, batch, targets, config)
    if output.words is not None:
        terms["words"] = output.words.loss(targets.labels, batch.begins_word[:, 0])
    return LossTerms(
        torch.stack([total for total, _ in terms.values()]),
        torch.stack([count.to(zero.dtype) for _, count in terms.values()]),
    )


def _grounding(box_logits: Tensor, targets: Targets, config: LossConfig) -> dict[str, tuple[Tensor, Tensor]]:
    """L_bbox (MSE on σ(tx), σ(ty), tw, th) and L_object (BCE), as the paper says.

    FA-VG has a softmax over all candidates in the place of the BCE. Positives and negatives are apart [chosen].
    Negatives count by the pair and are weighted by the square of their score (focal loss, Lin et al. 2017).
    In a mean over thousands of candidates the one false box that wins the arg max has no weight: with it a
    model of 16 posts stayed at Accu@0.5 = 0.66 with every box learned exactly. See `LossConfig.best_background`, too.
    """
    assigned = box_logits[targets.box_candidates.unbind(-1)]  # [M, 5]
    predicted = torch.cat([assigned[:, :2].sigmoid(), assigned[:, 2:4]], -1)
    box = F.mse_loss(predicted, targets.box_targets, reduction="sum")
    confidence = box_logits[..., 4]  # [P, K, C]
    positive, background = targets.objectness == 1, targets.objectness == 0
    missed = confidence.sigmoid().square() * F.softplus(confidence)
    negative = (missed * background).sum()
    if config.best_background:
        answers = confidence.masked_fill(~background, -torch.inf).amax(-1)
        negative = negative + (F.softplus(answers) * ~positive.any(-1)).sum()
    return {
        "box": (box, box.new_full((), len(assigned))),
        "object_positive": ((F.softplus(-confidence) * positive).sum(), positive.sum()),
        "object_negative": (negative, background.any(-1).sum()),
    }


def _spans(
    spans: SpanLogits, batch: Batch, targets: Targets, config: LossConfig
) -> dict[str, tuple[Tensor, Tensor]]:
    """L_ED, and the three parts of L_ESP."""
    weight = config.positive_weight
    start, words = _cross_entropy(spans.start_logits, targets.starts, batch.begins_word, weight)
    end, ends = _cross_entropy(spans.end_logits, targets.ends, batch.ends_word, weight)
    if config.span_mean == "queries":
        words = ends = batch.begins_word.any(-1).sum()
    return {
        "existence": _cross_entropy(spans.existence_logits, targets.existence, targets.existence >= 0),
        "start": (start, words),
        "end": (end, ends),
        "match": _match(spans, batch, targets, config),
    }


def _cross_entropy(
    logits: Tensor, labels: Tensor, counted: Tensor, positive_weight: float = 1.0
) -> tuple[Tensor, Tensor]:
    """[..., 2], [...] and where to look, as a sum and its count; the device is not asked how many there are."""
    known = labels.masked_fill(~counted, -100).flatten()
    losses = F.cross_entropy(logits.float().flatten(0, -2), known, ignore_index=-100, reduction="none")
    return (losses * _weights(known, positive_weight)).sum(), counted.sum()


def _weights(labels: Tensor, of_positives: float) -> Tensor:
    # torch's own weights of classes are a tensor, for whose copy to the device the host would wait in each step.
    return (labels == 1) * (of_positives - 1) + 1


def _match(spans: SpanLogits, batch: Batch, targets: Targets, config: LossConfig) -> tuple[Tensor, Tensor]:
    """BCE over gold starts x gold ends and predicted starts x predicted ends, start ≤ end."""
    starts = (spans.start_logits.softmax(-1)[..., 1] > config.match_candidates) & batch.begins_word
    ends = (spans.end_logits.softmax(-1)[..., 1] > config.match_candidates) & batch.ends_word
    predicted = (starts[..., :, None] & ends[..., None, :]).triu()  # [P, K, L, L]
    # A gold span begins at a gold start and ends at a gold end: what is left is wrong.
    predicted = predicted.index_put(targets.pairs.unbind(-1), predicted.new_zeros(()))
    # Filled up to a size that does not depend on the device, so that the host need not wait for it to say how many.
    others = predicted.nonzero_static(size=_PREDICTED_PAIRS * starts.numel(), fill_value=-1)
    is_pair = torch.cat([targets.matches >= 0, others[:, 0] >= 0])
    labels = torch.cat([targets.matches, torch.zeros_like(others[:, 0], dtype=targets.matches.dtype)])
    logits = spans.match.at(torch.cat([targets.pairs, others.clamp(min=0)])).float()
    losses = F.binary_cross_entropy_with_logits(logits, labels, reduction="none")
    return (losses * is_pair * _weights(labels, config.positive_weight)).sum(), is_pair.sum()


@dataclass(frozen=True)
class JointLoss:
    """One step's loss: `total` to go backward from, of one worker's share, and what to log (global, no gradient)."""

    total: Tensor
    value: Tensor
    grounding: Tensor
    existence: Tensor
    spans: Tensor
    balance: Tensor


class LossBalance:
    """ω_f and the weighted sum (eq. 6).

    The paper says that ω_f is dynamic and leaves how to its appendix. "dynamic" is stop-gradient
    clamp(EMA(λ1 L_ED + λ2 L_ESP) / EMA(L_QG), min, max) [chosen]. The averages are kept term by term, and a step
    moves those alone of which it has a count: one without annotated pictures says nothing of L_QG. They are part of
    the training state. L_QG also has a weight of its own, 1 but in the ablation "w/o QG loss". Nothing here asks the
    device for a value.

    Attributes:
        running: [8] the average of each of `TERMS`, NaN before its first count, on the device of the terms once there
            have been some.
    """

    def __init__(self, config: LossConfig) -> None:
        self.config = config
        self.running = torch.full((len(TERMS),), torch.nan)

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
        balance = self._balance(means, counts) if self.config.balance == "dynamic" else means.new_ones(())
        everywhere = self._losses(means)
        mine = self._losses(workers * terms.sums / counts.clamp(min=1))
        return JointLoss(
            self._weighted(mine, balance), self._weighted(everywhere, balance), *everywhere, balance=balance
        )

    def _weighted(self, losses: tuple[Tensor, Tensor, Tensor], balance: Tensor) -> Tensor:
        config = self.config
        grounding, existence, spans = losses
        return (
            balance * config.grounding_weight * grounding
            + config.existence_weight * existence
            + config.span_weight * spans
        )

    def _losses(self, means: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        box, positive, negative, existence, start, end, match, words = means.unbind()
        spans = start + end + self.config.match_weight * match + words
        return self.config.box_weight * box + positive + negative, existence, spans

    def _balance(self, means: Tensor, counts: Tensor) -> Tensor:
        config = self.config
        momentum = config.balance_momentum
        before = self.running.to(means)
        moved = torch.where(before.isnan(), means, momentum * before + (1 - momentum) * means)
        self.running = torch.where(counts == 0, before, moved)
        grounding, existence, spans = self._losses(self.running.nan_to_num(0.0))
        # A loss that is taken away (λ1 = 0) does not steer the others either.
        ratio = (config.existence_weight * existence + config.span_weight * spans) / grounding.clamp(min=1e-6)
        return ratio.clamp(config.balance_min, config.balance_max)
