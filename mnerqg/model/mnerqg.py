"""MNER-QG, assembled. `MNERQG.forward` reads as Figure 2 of the paper.

Shapes: P posts, K queries a post, L pieces, D width, I pictures, R grid side, C box candidates.
"""

import torch
from torch import Tensor, nn

from mnerqg.inputs.batch import Batch, Texts
from mnerqg.model.attention import AttentivePooling
from mnerqg.model.backbone import VisualEncoder
from mnerqg.model.encoder import encoder_states, lay_states
from mnerqg.model.heads import RARE, BinaryHead, GroundingHead, MatchHead
from mnerqg.model.interaction import CrossModality, ExistenceAware
from mnerqg.model.norm import normalise_by_stored, synchronize_batch_norms
from mnerqg.model.output import Output, SpanLogits

# The logit of a box's confidence is told over this, squashed [chosen].
_CONFIDENCE_SCALE = 4.0


class TextFeatures(nn.Module):
    """H': a text encoder, dropout, and a projection to D."""

    def __init__(self, *, encoder: nn.Module, encoder_width: int, width: int, dropout: float) -> None:
        super().__init__()
        self.encoder = encoder
        self.dropout = nn.Dropout(dropout)
        self.project = nn.Linear(encoder_width, width)

    def forward(self, texts: tuple[Texts, ...]) -> list[Tensor]:
        """Each sequence is encoded once, beside those of about its length.

        Args:
            texts: all sequences.

        Returns:
            Of each group [N, L', D]; see `lay_states`.
        """
        return [self.project(self.dropout(encoder_states(self.encoder, group))) for group in texts]


class SpanHeads(nn.Module):
    """The left of Figure 2 above H_u: existence-aware interaction, then existence, start, end and match.

    With `told` the existence state of a query is told how sure the grounding is of its best box [chosen].
    """

    def __init__(self, *, width: int, match_hidden: int | None, told: bool = False) -> None:
        super().__init__()
        self.told = nn.Parameter(torch.zeros(width)) if told else None
        self.existence_summary = AttentivePooling(width=width)
        self.existence_aware = ExistenceAware(width=width)
        self.existence = BinaryHead(width=width)
        self.start = BinaryHead(width=width, prior=RARE)
        self.end = BinaryHead(width=width, prior=RARE)
        self.match = MatchHead(width=width, hidden=match_hidden)

    def forward(
        self, text: Tensor, fused: Tensor, mask: Tensor, confidence: Tensor | None = None
    ) -> SpanLogits:
        """The answers of every query.

        Args:
            text, fused: H' and H_u [P, K, L, D].
            mask: [P, K, L] where there are pieces.
            confidence: [P, K] the logit of the most confident box.
        """
        existence = self.existence_summary(text, mask)  # H_g [P, K, D]
        if self.told is not None and confidence is not None:
            # Times the root of D it is as long as a state, and learned from as fast.
            sure = torch.tanh(confidence / _CONFIDENCE_SCALE) * existence.shape[-1] ** 0.5
            existence = existence + (sure.unsqueeze(-1) * self.told).to(existence.dtype)
        start, end, existence = self.existence_aware(fused, existence, mask)  # H̃_s, H̃_e, H̃_g
        return SpanLogits(
            existence_logits=self.existence(existence),
            start_logits=self.start(start),
            end_logits=self.end(end),
            match=self.match(start, end),
        )


class Grounding(nn.Module):
    """The right of Figure 2: the query's summary q, and the box that it is answered by.

    Args:
        width: D.
        anchors_per_scale: A.
        query_map: map q as FA-VG does; see `ModelConfig.query_map`.
        query_gradient: the share of the gradient that H' gets; see `ModelConfig.query_gradient`.
    """

    def __init__(
        self,
        *,
        width: int,
        anchors_per_scale: int,
        query_map: bool = False,
        query_gradient: float = 1.0,
    ) -> None:
        super().__init__()
        self.query_gradient = query_gradient
        self.query_summary = AttentivePooling(width=width)
        self.query_map = _two_layers(width) if query_map else None
        self.head = GroundingHead(width=width, anchors_per_scale=anchors_per_scale)

    def forward(self, text: Tensor, query_mask: Tensor, maps: tuple[Tensor, ...], shown: Tensor) -> Tensor:
        """The box logits that `GroundingHead` answers for q, [P, K, C, 5].

        Args:
            text: H' where the queries are read, [P, K, M, D].
            query_mask: [P, K, M] the queries' own pieces.
            maps: U_1 to U_3.
            shown: [I] the post of each of them.
        """
        if self.query_gradient < 1 and text.requires_grad:
            text = text.detach().lerp(text, self.query_gradient)
        query = self.query_summary(text, query_mask)  # q [P, K, D]
        if self.query_map is not None:
            query = _mapped(self.query_map, query)
        return self.head(maps, query, shown)


def _mapped(layers: nn.Sequential, query: Tensor) -> Tensor:
    """q [P, K, D] through the layers of `_two_layers`.

    A single query that is read alone is its own mean in every batch: by the batch's statistics nothing would be left
    of it in training, and in use it would be divided by a variance of nothing. It is normalised by the stored ones
    throughout.
    """
    single = query.shape[1] == 1
    states = query.flatten(0, 1)
    for layer in layers:
        states = (
            normalise_by_stored(layer, states)
            if single and isinstance(layer, nn.BatchNorm1d)
            else layer(states)
        )
    return states.unflatten(0, query.shape[:2])


def _two_layers(width: int) -> nn.Sequential:
    layers = [(nn.Linear(width, width), nn.BatchNorm1d(width), nn.ReLU()) for _ in range(2)]
    return nn.Sequential(*(part for layer in layers for part in layer))


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
        grounding: whether queries are grounded in the picture.
        query_map, query_gradient: see `Grounding`.
        region_existence: whether the spans are told how sure the grounding is.
        spans: whether they are answered by spans, with the existence detection; without them the grounding is all there
            is (FA-VG).
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
        query_map: bool = False,
        query_gradient: float = 1.0,
        spans: bool = True,
        region_existence: bool = False,
    ) -> None:
        super().__init__()
        self.text = text
        self.visual = visual
        self.grounding = (
            Grounding(
                width=width,
                anchors_per_scale=anchors_per_scale,
                query_map=query_map,
                query_gradient=query_gradient,
            )
            if grounding
            else None
        )
        self.cross_modality = CrossModality(width=width, heads=heads) if spans and visual else None
        self.spans = (
            SpanHeads(width=width, match_hidden=match_hidden, told=region_existence) if spans else None
        )
        synchronize_batch_norms(self)

    @property
    def encoder(self) -> nn.Module:
        """The text encoder as `transformers` made it."""
        return self.text.encoder

    def forward(self, batch: Batch) -> Output:
        """Answer every query of every post; targets of the batch are not looked at."""
        pieces = batch.attention_mask.shape[-1]
        states = self.text(batch.texts)
        text = lay_states(states, batch.sequence, pieces)  # H' [P, K, L, D]
        maps = self.visual(batch.pixels) if self.visual else ()  # U_1, U_2, U_3, each [I, D, R, R]
        if len(batch.pixels) < len(batch.shown):  # the windows of a long text share a picture
            maps = tuple(grid.index_select(0, batch.picture) for grid in maps)
        fused = self.cross_modality(text, maps, batch.shown) if self.cross_modality else text  # H_u
        # The query grounding; beside it existence-aware interaction, then existence, start, end and match.
        boxes = None
        if self.grounding:
            queries = lay_states(states, batch.query_sequence, batch.query_mask.shape[-1])
            boxes = self.grounding(queries, batch.query_mask, maps, batch.shown)
        if self.spans is None:
            return Output(box_logits=boxes)
        told = boxes is not None and self.spans.told is not None
        # The existence is told the confidence and does not teach it: it would learn a box for a name that the picture
        # does not show.
        confidence = boxes[..., 4].amax(-1).detach() if boxes is not None and told else None
        spans = self.spans(text, fused, batch.attention_mask, confidence)
        return Output(spans=spans, box_logits=boxes)
