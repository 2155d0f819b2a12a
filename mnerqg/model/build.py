"""Assembles the model from its configuration; the one place that knows where pretrained weights come from."""

from pathlib import Path
from typing import Any

from torch import nn
from transformers import AutoConfig, AutoModel

from mnerqg.boxes import Anchors
from mnerqg.config import ModelConfig
from mnerqg.data.text import first_line, resolve_encoder
from mnerqg.errors import ModelError
from mnerqg.model.backbone import Backbone, VisualEncoder, load_pretrained
from mnerqg.model.mnerqg import MNERQG, TextFeatures


def build_anchors(config: ModelConfig) -> Anchors:
    """The anchors at the scale of the model's canvas."""
    return Anchors(sizes=config.anchors, reference_side=config.anchor_side, side=config.image_side)


def build_pretrained(config: ModelConfig) -> MNERQG:
    """The model with pretrained encoder and backbone, everything else fresh.

    Raises:
        ModelError: weights that cannot be had or do not fit.
    """
    name = resolve_encoder(config.encoder)
    try:
        encoder = AutoModel.from_pretrained(name, add_pooling_layer=False, **_encoder_options(config))
    except (OSError, ValueError) as error:
        raise ModelError(f"no encoder at {name}: {first_line(error)}") from None
    visual = _visual(config)
    if config.backbone_weights is not None:
        load_pretrained(visual.backbone, config.backbone_weights, pyramid=visual.pyramid)
    return _assemble(config, encoder, visual)


def build_empty(config: ModelConfig, encoder_directory: Path) -> MNERQG:
    """The model with random weights, its encoder shaped by `encoder_directory/config.json`; needs no network."""
    encoder_config = AutoConfig.from_pretrained(encoder_directory)
    encoder = AutoModel.from_config(
        encoder_config, add_pooling_layer=False, attn_implementation=config.encoder_attention
    )
    return _assemble(config, encoder, _visual(config))


def _visual(config: ModelConfig) -> VisualEncoder:
    backbone = Backbone(
        name=config.backbone,
        frozen_stages=config.frozen_backbone_stages,
        frozen_statistics=config.frozen_backbone_statistics,
    )
    return VisualEncoder(
        backbone=backbone,
        width=config.width,
        pyramid_width=config.pyramid_width,
        pyramid_depth=config.pyramid_depth,
    )


def _assemble(config: ModelConfig, encoder: nn.Module, visual: VisualEncoder) -> MNERQG:
    encoder_config: Any = encoder.config
    text = TextFeatures(
        encoder=encoder, encoder_width=encoder_config.hidden_size, width=config.width, dropout=config.dropout
    )
    return MNERQG(
        text=text,
        visual=visual,
        width=config.width,
        heads=config.heads,
        match_hidden=config.match_hidden,
        anchors_per_scale=build_anchors(config).per_scale,
    )


def _encoder_options(config: ModelConfig) -> dict[str, Any]:
    options: dict[str, Any] = {"attn_implementation": config.encoder_attention}
    if config.encoder_dropout is not None:
        options |= dict.fromkeys(
            ("hidden_dropout_prob", "attention_probs_dropout_prob"), config.encoder_dropout
        )
    return options
