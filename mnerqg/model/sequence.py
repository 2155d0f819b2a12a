"""The baselines a reader compares with: an encoder that labels words (BERT), and one with a CRF above (BERT-CRF).

Shapes: P posts, L pieces, W words, T = 2K + 1 tags: 0 is O, 1 + 2k is B and 2 + 2k is I of the type k.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchcrf import CRF

from mnerqg.inputs.batch import Batch
from mnerqg.model.mnerqg import Output


class SequenceTagger(nn.Module):
    """Token classification: the first piece of a word says its tag.

    Args:
        encoder: a BERT-type encoder.
        encoder_width: its width.
        types: K.
        dropout: on the encoder's states.
        crf: whether a linear-chain CRF scores the tags of a sentence together.
    """

    def __init__(
        self, *, encoder: nn.Module, encoder_width: int, types: int, dropout: float, crf: bool
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.dropout = nn.Dropout(dropout)
        self.project = nn.Linear(encoder_width, 2 * types + 1)
        self.crf = CRF(2 * types + 1, batch_first=True) if crf else None

    def forward(self, batch: Batch) -> Output:
        """Tag logits of every piece; the batch holds one empty query a post."""
        states: Any = self.encoder(
            input_ids=batch.input_ids[:, 0],
            token_type_ids=batch.token_type_ids[:, 0],
            attention_mask=batch.attention_mask[:, 0],
        ).last_hidden_state
        return Output(tag_logits=self.project(self.dropout(states)).float())

    def loss(self, tag_logits: Tensor, tags: Tensor, begins_word: Tensor) -> tuple[Tensor, int]:
        """Sum over the words of the negative log-likelihood, and how many words there are.

        Args:
            tag_logits: [P, L, T].
            tags: [P, L], looked at where `begins_word` [P, L] is true.
        """
        count = int(begins_word.sum())
        if self.crf is None:
            return F.cross_entropy(tag_logits[begins_word], tags[begins_word], reduction="sum"), count
        logits, mask = pack_words(tag_logits, begins_word)
        labels, _ = pack_words(tags, begins_word)
        filled = mask[:, 0]  # a post without a word has no likelihood
        if not count:  # data parallelism waits for a gradient of every parameter, be it zero
            return 0 * (tag_logits.sum() + sum(p.sum() for p in self.crf.parameters())), count
        return -self.crf(logits[filled], labels[filled], mask[filled], reduction="sum"), count

    @torch.no_grad()
    def best_tags(self, tag_logits: Tensor, begins_word: Tensor) -> list[list[int]]:
        """The tags of each post's words: arg max, or the CRF's best path."""
        if self.crf is None:
            best = tag_logits.argmax(-1)
            return [row[mask].tolist() for row, mask in zip(best, begins_word, strict=True)]
        logits, mask = pack_words(tag_logits, begins_word)
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
