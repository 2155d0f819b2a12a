from pathlib import Path

import pytest
import torch
from transformers import BertConfig, BertModel, PreTrainedModel, RobertaConfig, RobertaModel

from mnerqg.config import ModelConfig
from mnerqg.errors import ModelError
from mnerqg.model.build import build_empty, build_pretrained

SMALL = {
    "vocab_size": 50,
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 16,
}


def save(encoder: PreTrainedModel, folder: Path) -> ModelConfig:
    """The folder as the encoder of a model of the text alone, 64 pieces long."""
    encoder.save_pretrained(folder)
    return ModelConfig(encoder=str(folder), width=16, heads=2, inputs="text", grounding=False, max_length=64)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_an_encoder_of_half_precision_is_trained_in_single(tmp_path: Path, dtype: torch.dtype) -> None:
    """Before, it kept its type: after 5 steps in bf16 55 % of the weights had moved, in fp32 it raised."""
    config = save(BertModel(BertConfig(**SMALL)).to(dtype), tmp_path)
    for network in (build_pretrained(config, 4), build_empty(config, tmp_path, 4)):
        assert {parameter.dtype for parameter in network.parameters()} == {torch.float32}


def test_more_pieces_than_the_encoder_has_positions_for_are_refused(tmp_path: Path) -> None:
    """Before, the first forward of a long enough post was an IndexError."""
    short = save(BertModel(BertConfig(**SMALL, max_position_embeddings=40)), tmp_path / "bert")
    with pytest.raises(ModelError, match=r"max_length is 64, but .*bert has positions for 40 pieces; set it"):
        build_pretrained(short, 4)
    # RoBERTa's first two positions are the padding's.
    fitting = save(
        RobertaModel(RobertaConfig(**SMALL, max_position_embeddings=66, pad_token_id=1)), tmp_path / "66"
    )
    build_pretrained(fitting, 4)
    cut = save(
        RobertaModel(RobertaConfig(**SMALL, max_position_embeddings=65, pad_token_id=1)), tmp_path / "65"
    )
    with pytest.raises(ModelError, match="has positions for 63 pieces"):
        build_pretrained(cut, 4)
