"""Assembles the model from its configuration; the one place that knows where pretrained weights come from."""

from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModel

from mnerqg.boxes import Anchors
from mnerqg.config import Config, ModelConfig
from mnerqg.errors import ModelError
from mnerqg.inputs.batch import Collator
from mnerqg.inputs.text import TextEncoder, first_line, resolve_encoder
from mnerqg.model.backbone import Backbone, VisualEncoder
from mnerqg.model.mnerqg import MNERQG, TextFeatures
from mnerqg.model.pretrained import load_pretrained
from mnerqg.model.sequence import SequenceLabeller

Network = MNERQG | SequenceLabeller


def build_anchors(config: ModelConfig) -> Anchors:
    """The anchors at the scale of the model's canvas."""
    return Anchors(sizes=config.anchors, reference_side=config.anchor_side, side=config.image_side)


def build_collator(config: Config, text_encoder: TextEncoder) -> Collator:
    """What makes batches for the network of `config`."""
    return Collator(
        text_encoder=text_encoder,
        anchors=build_anchors(config.model),
        ignore_iou=config.loss.ignore_iou,
        inputs=config.model.inputs,
        asks=config.model.tagger == "mrc",
        box_targets=config.loss.box_targets,
    )


def build_pretrained(config: ModelConfig, types: int) -> Network:
    """The network for K = `types` queries with pretrained encoder and backbone, everything else fresh.

    Raises:
        ModelError: weights that cannot be had or do not fit.
    """
    name = resolve_encoder(config.encoder)
    try:
        # Where the checkpoint is of half precision, it would be trained in that.
        encoder = AutoModel.from_pretrained(
            name, add_pooling_layer=False, dtype=torch.float32, **_encoder_options(config)
        )
    except (OSError, ValueError) as error:
        raise ModelError(f"no encoder at {name}: {first_line(error)}") from None
    _check_length(config, encoder)
    network = assemble(config, encoder, types)
    if isinstance(network, MNERQG) and network.visual is not None and config.backbone_weights is not None:
        load_pretrained(network.visual.backbone, config.backbone_weights, pyramid=network.visual.pyramid)
    return network


def build_empty(config: ModelConfig, encoder_directory: Path, types: int) -> Network:
    """The network with random weights, its encoder shaped by `encoder_directory/config.json`; needs no hub.

    Raises:
        ModelError: no encoder can be made of that file.
    """
    try:
        encoder_config = AutoConfig.from_pretrained(encoder_directory)
        encoder = AutoModel.from_config(
            encoder_config,
            add_pooling_layer=False,
            dtype=torch.float32,
            attn_implementation=config.encoder_attention,
        )
    except Exception as error:  # what the library raises depends on what the file says
        raise ModelError(
            f"no encoder can be built from {encoder_directory}: {first_line(error)}; copy the model directory again "
            "or install the release that wrote it"
        ) from None
    return assemble(config, encoder, types)


def assemble(config: ModelConfig, encoder: nn.Module, types: int) -> Network:
    """The network around an encoder, for K = `types` queries; everything but the encoder is fresh."""
    encoder_config: Any = encoder.config
    width: int = encoder_config.hidden_size
    if config.tagger != "mrc":
        return SequenceLabeller(
            encoder=encoder,
            encoder_width=width,
            types=types,
            dropout=config.dropout,
            crf=config.tagger == "crf",
        )
    return MNERQG(
        text=TextFeatures(encoder=encoder, encoder_width=width, width=config.width, dropout=config.dropout),
        visual=_visual(config) if config.inputs != "text" else None,
        width=config.width,
        heads=config.heads,
        match_hidden=config.match_hidden,
        anchors_per_scale=build_anchors(config).per_scale,
        grounding=config.grounding,
        spans=config.answers_entities,
    )


def _check_length(config: ModelConfig, encoder: nn.Module) -> None:
    """Raises ModelError where `max_length` pieces are more than the encoder has positions for."""
    for name, module in encoder.named_modules():
        if isinstance(module, nn.Embedding) and name.rpartition(".")[2] == "position_embeddings":
            # RoBERTa and its kin count from behind the padding's position.
            before = 0 if module.padding_idx is None else module.padding_idx + 1
            if config.max_length > (positions := module.num_embeddings - before):
                raise ModelError(
                    f"model.max_length is {config.max_length}, but {config.encoder} has positions for {positions} "
                    f"pieces; set it to {positions} or less"
                )


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


def _encoder_options(config: ModelConfig) -> dict[str, Any]:
    options: dict[str, Any] = {"attn_implementation": config.encoder_attention}
    if config.encoder_dropout is not None:
        options |= dict.fromkeys(
            ("hidden_dropout_prob", "attention_probs_dropout_prob"), config.encoder_dropout
        )
    return options
