"""Assembles the model from its configuration; the one place that knows where pretrained weights come from."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers.initialization import no_init_weights

from mnerqg.boxes import Anchors
from mnerqg.config import Config, ModelConfig
from mnerqg.errors import ModelError
from mnerqg.inputs.collate import Collator
from mnerqg.inputs.examples import Example
from mnerqg.inputs.text import TextEncoder, first_line
from mnerqg.model.backbone import Backbone, VisualEncoder
from mnerqg.model.encoder import empty_encoder, encoder_states, load_encoder, mask_always
from mnerqg.model.mnerqg import MNERQG, TextFeatures
from mnerqg.model.pretrained import load_pretrained
from mnerqg.model.sequence import SequenceLabeller

Network = MNERQG | SequenceLabeller


def build_anchors(config: ModelConfig) -> Anchors:
    """The anchors at the scale of the model's canvas."""
    return Anchors(sizes=config.anchors, reference_side=config.anchor_side, side=config.image_side)


def build_collator(config: Config, text_encoder: TextEncoder, **options: Any) -> Collator:
    """What makes batches for the network of `config`; the options are those of a `Collator`, such as `step`."""
    return Collator(
        text_encoder=text_encoder,
        anchors=build_anchors(config.model),
        ignore_iou=config.loss.ignore_iou,
        inputs=config.model.inputs,
        asks=config.model.tagger == "mrc",
        query_alone=config.model.query_alone and config.model.grounding,
        box_targets=config.loss.box_targets,
        **options,
    )


def build_pretrained(config: ModelConfig, types: int) -> Network:
    """The network for K = `types` queries with pretrained encoder and backbone, everything else fresh.

    Raises:
        ModelError: weights that cannot be had or do not fit.
    """
    encoder = load_encoder(config)
    _check_length(config, encoder)
    network = assemble(config, encoder, types)
    if isinstance(network, MNERQG) and network.visual is not None and config.backbone_weights is not None:
        load_pretrained(network.visual.backbone, config.backbone_weights, pyramid=network.visual.pyramid)
    return network


def build_empty(config: ModelConfig, encoder_directory: Path, types: int) -> Network:
    """The network whose weights are yet to be filled in, all of them; needs no hub.

    Drawing them at random would take longer than reading the others. What the weights do not hold, such as positions,
    is as it should be.

    Args:
        config: of the network.
        encoder_directory: whose `config.json` says how the encoder is shaped.
        types: K.

    Raises:
        ModelError: no encoder can be made of that file.
    """
    with no_init_weights():  # of all torch's modules, not transformers' alone
        return assemble(config, empty_encoder(config, encoder_directory), types)


@torch.inference_mode()
def try_out(network: Network, config: Config, text_encoder: TextEncoder) -> None:
    """Pass a made-up post through a network that is to be trained, as long as one may be.

    Raises:
        ModelError: its encoder cannot work with its tokenizer, or with posts of that length, or the network cannot.
    """
    name = config.model.encoder
    was_training = network.training
    network.eval()
    side = config.model.image_side
    collate = build_collator(config, text_encoder)
    for words in (1, config.model.max_length):
        text = text_encoder.encode("word " * words)
        batch = collate([Example(text, pixels=np.zeros((side, side, 3), np.uint8))], with_targets=False)
        longest = batch.texts[-1]
        shape = longest.input_ids.shape
        try:
            states = encoder_states(network.encoder, longest)
        except Exception as error:  # whatever a family of encoders does with texts that it was not made for
            remedy = (
                "name another encoder" if words == 1 else "lower model.max_length, or name another encoder"
            )
            raise ModelError(
                f"model.encoder is {name}, which cannot read a post of {shape[1]} pieces: {first_line(error)}; "
                f"{remedy}"
            ) from None
        if states.shape[:2] != shape or not states.isfinite().all():
            raise ModelError(
                f"model.encoder is {name}, which does not answer each of {shape[1]} pieces with a number; "
                "name another encoder"
            )
    try:
        network(batch)
    except Exception as error:  # the same of backbones
        raise ModelError(
            f"the network of {name} and {config.model.backbone} cannot read a post: {first_line(error)}; "
            "name another model.backbone or model.image_side"
        ) from None
    network.train(was_training)


def assemble(config: ModelConfig, encoder: nn.Module, types: int) -> Network:
    """The network around an encoder, for K = `types` queries; everything but the encoder is fresh."""
    mask_always(encoder)
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
        query_map=config.query_map,
        query_gradient=config.query_gradient,
        region_existence=config.region_existence,
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
