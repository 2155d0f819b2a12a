"""What a network answers, before softmax and sigmoid: each part is there or not, as the variant has it.

Shapes: P posts, K queries a post, L pieces, C box candidates.
"""

from dataclasses import dataclass

from torch import Tensor

from mnerqg.model.heads import MatchLogits
from mnerqg.model.words import WordLogits


@dataclass(frozen=True)
class SpanLogits:
    """Entities as spans: existence_logits [P, K, 2], start_logits and end_logits [P, K, L, 2], and their pairs."""

    existence_logits: Tensor
    start_logits: Tensor
    end_logits: Tensor
    match: MatchLogits


@dataclass(frozen=True)
class Output:
    """The answers to P posts.

    spans: of a network that answers queries by spans.
    box_logits: [P, K, C, 5], raw (tx, ty, tw, th, conf), of one that grounds them.
    words: of a baseline, which labels words.
    """

    spans: SpanLogits | None = None
    box_logits: Tensor | None = None
    words: WordLogits | None = None
