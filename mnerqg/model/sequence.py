"""The baselines a reader compares with: an encoder that labels words (BERT), and one with a CRF above (BERT-CRF)."""

from torch import nn
from torchcrf import CRF

from mnerqg.inputs.batch import Batch
from mnerqg.model.encoder import encoder_states, lay_states
from mnerqg.model.output import Output
from mnerqg.model.words import WordLogits


class SequenceLabeller(nn.Module):
    """Token classification: the first piece of a word says its label.

    Args:
        encoder: a text encoder of `transformers`.
        encoder_width: its width.
        types: K.
        dropout: on the encoder's states.
        crf: whether a linear-chain CRF scores the labels of a sentence together.
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
        """Label logits of every piece; the batch holds one empty query a post."""
        pieces = batch.attention_mask.shape[-1]
        states = [self.project(self.dropout(encoder_states(self.encoder, group))) for group in batch.texts]
        labels = lay_states(states, batch.sequence[:, 0], pieces)
        return Output(words=WordLogits(labels.float(), self.crf))
