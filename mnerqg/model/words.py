"""Word labels, by which the baselines find entities: their loss, the best of them, and the entities they spell.

Shapes: P posts, L pieces, W words, T = 2K + 1 labels: 0 is O, 1 + 2k is B and 2 + 2k is I of the type k.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from torchcrf import CRF


@dataclass(frozen=True)
class WordLogits:
    """What a baseline says of the words of P posts.

    labels: [P, L, T] before softmax; a word's are those of its first piece.
    crf: scores the labels of a sentence together; None where each word stands alone.
    """

    labels: Tensor
    crf: CRF | None = None

    def loss(self, labels: Tensor, begins_word: Tensor) -> tuple[Tensor, Tensor]:
        """Sum over the words of the negative log-likelihood, and how many words there are.

        With a CRF the host waits for the device, as the CRF's library does.

        Args:
            labels: [P, L], looked at where `begins_word` [P, L] is true.
        """
        count = begins_word.sum()
        if self.crf is None:
            known = labels.masked_fill(~begins_word, -100)
            return F.cross_entropy(
                self.labels.transpose(1, 2), known, ignore_index=-100, reduction="sum"
            ), count
        logits, mask = pack_words(self.labels, begins_word)
        packed, _ = pack_words(labels, begins_word)
        filled = mask[:, 0]  # a post without a word has no likelihood
        if not count:  # data parallelism waits for a gradient of every parameter, be it zero
            return 0 * (self.labels.sum() + sum(p.sum() for p in self.crf.parameters())), count
        return -self.crf(logits[filled], packed[filled], mask[filled], reduction="sum"), count

    @torch.no_grad()
    def best(self, begins_word: Tensor) -> list[list[int]]:
        """The labels of each post's words: arg max, or the CRF's best path."""
        if self.crf is None:
            best = self.labels.argmax(-1)
            return [row[mask].tolist() for row, mask in zip(best, begins_word, strict=True)]
        logits, mask = pack_words(self.labels, begins_word)
        filled = mask.any(-1)
        if not filled.any():
            return [[] for _ in mask]
        paths = iter(self.crf.decode(logits[filled], mask[filled]))
        return [next(paths) if is_filled else [] for is_filled in filled.tolist()]


def pack_words(values: Tensor, begins_word: Tensor) -> tuple[Tensor, Tensor]:
    """[P, L, ...] at the first pieces of words, moved to the left -> [P, W, ...] and a mask [P, W]; W ≥ 1."""
    counts = begins_word.sum(-1)
    mask = torch.arange(max(int(counts.max()), 1), device=counts.device) < counts[:, None]
    packed = values.new_zeros(*mask.shape, *values.shape[2:])
    packed[mask] = values[begins_word]
    return packed, mask


def label_runs(labels: Sequence[int]) -> list[tuple[int, int, int]]:
    """(first word, last word, type index) of each entity that the labels of words spell; a stray I begins one."""
    runs: list[tuple[int, int, int]] = []
    for word, label in enumerate(labels):
        if label == 0:
            continue
        kind = (label - 1) // 2
        goes_on = label % 2 == 0 and bool(runs) and runs[-1][1:] == (word - 1, kind)
        first = runs.pop()[0] if goes_on else word
        runs.append((first, word, kind))
    return runs
