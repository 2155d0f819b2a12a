"""MNER-QG, assembled. `MNERQG.forward` reads as Figure 2 of the paper.

Shapes: P posts, K queries a post, L pieces, D width, I pictures, R grid side, C box candidates.
"""

from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, nn

from mnerqg.inputs.batch import Batch
from mnerqg.model.attention import AttentivePooling
from mnerqg.model.backbone import VisualEncoder
from mnerqg.model.heads import RARE, BinaryHead, GroundingHead, MatchHead
from mnerqg.model.interaction import CrossModality, ExistenceAware
from mnerqg.model.norm import synchronize_batch_norms


@dataclass(frozen=True)
class Output:
    """What the heads say, all before softmax or sigmoid; None where a variant has no such head.

    existence_logits [P, K, 2], start_logits and end_logits [P, K, L, 2], match_start and match_end
    [P, K, L, H] (a pair's two shares, see `MatchHead`), box_logits [P, K, C, 5]; of the baselines
    tag_logits [P, L, 2K + 1].
    """

    existence_logits: Tensor | None = None
    start_logits: Tensor | None = None
    end_logits: Tensor | None = None
    match_start: Tensor | None = None
    match_end: Tensor | None = None
    box_logits: Tensor | None = None
    tag_logits: Tensor | None = None


class TextFeatures(nn.Module):
    """H': a BERT-type encoder, dropout, and a projection to D."""

    def __init__(self, *, encoder: nn.Module, encoder_width: int, width: int, dropout: float) -> None:
        super().__init__()
        self.encoder = encoder
        self.dropout = nn.Dropout(dropout)
        self.project = nn.Linear(encoder_width, width)

    def forward(self, input_ids: Tensor, token_type_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Three [P, K, L] -> [P, K, L, D]."""
        states: Any = self.encoder(
            input_ids=input_ids.flatten(0, 1),
            token_type_ids=token_type_ids.flatten(0, 1),
            attention_mask=attention_mask.flatten(0, 1),
        ).last_hidden_state
        return self.project(self.dropout(states)).unflatten(0, input_ids.shape[:2])


class MNERQG(nn.Module):
    """The end-to-end model of the paper: K queries a post, each answered by spans and one box.

    A variant lacks parts: no module is built that would not be used.

    Args:
        text: produces H'.
        visual: produces U_1, U_2, U_3; None reads no pictures (-Text).
        width: D.
        heads: attention heads of the cross-modality attention.
        match_hidden: see `MatchHead`.
        anchors_per_scale: A.
        grounding: whether there is a query grounding head.
        spans: whether there are span heads and the existence detection; without them the grounding is all there is
            (FA-VG).
    """

    def __init__(
        self,
        *,
        text: TextFeatures,
        visual: VisualEncoder | None,
        width: int,
        heads: int,
        match_hidden: int | None,
        anchors_per_scale: int,
        grounding: bool = True,
        spans: bool = True,
    ) -> None:
        super().__init__()
        self.text = text
        self.visual = visual
        self.query_summary = AttentivePooling(width=width) if grounding else None
        self.grounding = (
            GroundingHead(width=width, anchors_per_scale=anchors_per_scale) if grounding else None
        )
        self.cross_modality = CrossModality(width=width, heads=heads) if spans and visual else None
        self.existence_summary = AttentivePooling(width=width) if spans else None
        self.existence_aware = ExistenceAware(width=width) if spans else None
        self.existence = BinaryHead(width=width) if spans else None
        self.start = BinaryHead(width=width, prior=RARE) if spans else None
        self.end = BinaryHead(width=width, prior=RARE) if spans else None
        self.match = MatchHead(width=width, hidden=match_hidden) if spans else None
        synchronize_batch_norms(self)

    @property
    def encoder(self) -> nn.Module:
        """The text encoder as `transformers` made it."""
        return self.text.encoder

    def forward(self, batch: Batch) -> Output:
        """Answer every query of every post; targets of the batch are not looked at."""
        text = self.text(batch.input_ids, batch.token_type_ids, batch.attention_mask)  # H' [P, K, L, D]
        maps = self.visual(batch.pixels) if self.visual else None  # U_1, U_2, U_3, each [I, D, R, R]
        output = self._answer_spans(text, maps, batch) if self.start else Output()
        if self.grounding and self.query_summary:
            query = self.query_summary(text, batch.query_mask)  # q [P, K, D]
            output = replace(output, box_logits=self.grounding(maps, query, batch.picture))
        return output

    def _answer_spans(self, text: Tensor, maps: Any, batch: Batch) -> Output:
        """The left of Figure 2, from H' to existence, start, end and match."""
        assert self.start
        assert self.end
        assert self.match
        assert self.existence_summary
        assert self.existence_aware
        assert self.existence
        fused = self.cross_modality(text, maps, batch.picture) if self.cross_modality else text  # H_u
        existence = self.existence_summary(text, batch.attention_mask)  # H_g [P, K, D]
        start, end, existence = self.existence_aware(fused, existence, batch.attention_mask)
        match_start, match_end = self.match(start, end)
        return Output(
            existence_logits=self.existence(existence),
            start_logits=self.start(start),
            end_logits=self.end(end),
            match_start=match_start,
            match_end=match_end,
        )
