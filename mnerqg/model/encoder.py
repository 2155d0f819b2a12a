"""The text encoder of any family of `transformers` that reads a text both ways: made, and asked for its states."""

import inspect
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import MODEL_MAPPING, AttentionInterface, AttentionMaskInterface, AutoConfig, AutoModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask
from transformers.utils import logging as hf_logging

from mnerqg.config import ModelConfig
from mnerqg.errors import ModelError
from mnerqg.inputs.batch import Texts
from mnerqg.inputs.text import first_line, resolve_encoder

_log = logging.getLogger(__name__)
_ALWAYS_MASKED = "sdpa_always_masked"


def load_encoder(config: ModelConfig) -> nn.Module:
    """The pretrained encoder of a configuration, in float32 whatever type its file has.

    Raises:
        ModelError: it cannot be had or made.
    """
    name = resolve_encoder(config.encoder)
    try:
        encoder_config = AutoConfig.from_pretrained(name)
        _set_dropout(encoder_config, config.encoder_dropout)

        def make(**options: Any) -> nn.Module:
            return _load(name, config=encoder_config, **options)

        return _with_attention(make, encoder_config, config.encoder_attention, name)
    except Exception as error:  # what the library raises depends on what the files say
        raise ModelError(
            f"no encoder at {name}: {first_line(error)}; name the model.encoder of a family that transformers has"
        ) from None


def _load(name: str, **options: Any) -> nn.Module:
    """Read the weights without the library's bar and its report, which in every run names weights that the file has for
    heads and poolers and the network does not need; of those that the file lacks the log says so."""
    level, has_bar = hf_logging.get_verbosity(), hf_logging.is_progress_bar_enabled()
    hf_logging.set_verbosity_error()
    hf_logging.disable_progress_bar()
    try:
        encoder, found = AutoModel.from_pretrained(name, output_loading_info=True, **options)
    finally:
        hf_logging.set_verbosity(level)
        if has_bar:
            hf_logging.enable_progress_bar()
    if missing := sorted(found["missing_keys"]):
        _log.warning(
            "the encoder %s has no %s%s; they begin at random",
            name,
            ", ".join(missing[:3]),
            f" and {len(missing) - 3} weights more" if len(missing) > 3 else "",
        )
    return encoder


def empty_encoder(config: ModelConfig, directory: Path) -> nn.Module:
    """An encoder as it is before its weights are read, shaped by `directory/config.json`; needs no hub.

    Raises:
        ModelError: none can be made of that file.
    """
    try:
        encoder_config = AutoConfig.from_pretrained(directory)

        def make(**options: Any) -> nn.Module:
            return AutoModel.from_config(encoder_config, **options)

        return _with_attention(make, encoder_config, config.encoder_attention, str(directory))
    except Exception as error:  # what the library raises depends on what the file says
        raise ModelError(
            f"no encoder can be built from {directory}: {first_line(error)}; copy the model directory again "
            "or install the release that wrote it"
        ) from None


def encoder_states(encoder: nn.Module, texts: Texts) -> Tensor:
    """The states of N texts, [N, L', encoder width]. Type ids only for an encoder that has several."""
    encoder_config: Any = encoder.config
    types = (
        {"token_type_ids": texts.token_type_ids} if getattr(encoder_config, "type_vocab_size", 0) > 1 else {}
    )
    # As numbers: some families subtract the mask from one.
    states: Tensor = encoder(
        input_ids=texts.input_ids, attention_mask=texts.attention_mask.long(), **types
    ).last_hidden_state
    return states


def lay_states(states: Sequence[Tensor], sequence: Tensor, pieces: int) -> Tensor:
    """What was computed of each group of texts, laid where its sequences stand.

    Args:
        states: of each group [N, L', D].
        sequence: which of all groups' sequences, counted through, stands where; of any shape.
        pieces: L.

    Returns:
        [*sequence.shape, L, D], zeros behind the longest sequence of a group; what is longer is cut.
    """
    return torch.cat([F.pad(some, (0, 0, 0, pieces - some.shape[1])) for some in states])[sequence]


def take_sdpa(encoder: nn.Module) -> None:
    """Let an encoder that was trained with eager attention answer with sdpa's, where its family has that.

    Some releases of transformers make the mask of eager attention on the host, which no CUDA graph can have. A family
    without sdpa (MPNet) stays as it is.
    """
    known: Any = encoder
    if known.config._attn_implementation == "eager" and getattr(known, "_supports_sdpa", False):
        known.set_attn_implementation("sdpa")
    mask_always(encoder)


def mask_always(encoder: nn.Module) -> None:
    """Keep the encoder's sdpa attention from asking the device whether anything is padded.

    transformers leaves the mask away where nothing is, and to know whether it is, the host waits for the device.
    """
    known: Any = encoder
    if known.config._attn_implementation == "sdpa":
        known.set_attn_implementation(_ALWAYS_MASKED)


def _always_masked(*arguments: Any, **options: Any) -> Any:
    return sdpa_mask(*arguments, **options | {"allow_is_bidirectional_skip": False})


AttentionInterface.register(_ALWAYS_MASKED, sdpa_attention_forward)
AttentionMaskInterface.register(_ALWAYS_MASKED, _always_masked)


def _with_attention(
    make: Callable[..., nn.Module], encoder_config: Any, attention: str, name: str
) -> nn.Module:
    """An encoder with the kernel that is asked for, or with the other one, which the log then says."""
    options: dict[str, Any] = {"dtype": torch.float32}
    if _takes_pooling(encoder_config):
        options["add_pooling_layer"] = False  # its weights would never be learned
    other = "eager" if attention == "sdpa" else "sdpa"
    try:
        return make(attn_implementation=attention, **options)
    except (ValueError, ImportError):  # not the kernel's fault, if the other one fails alike
        encoder = make(attn_implementation=other, **options)
    _log.warning("the encoder %s has no %s attention; it runs with %s", name, attention, other)
    return encoder


def _takes_pooling(encoder_config: Any) -> bool:
    model = MODEL_MAPPING[type(encoder_config)]
    model = model[0] if isinstance(model, (tuple, list)) else model
    return "add_pooling_layer" in inspect.signature(model.__init__).parameters


def _set_dropout(encoder_config: Any, dropout: float | None) -> None:
    """Every family has names of its own for the dropout of its states and attention."""
    if dropout is None:
        return
    for name, value in encoder_config.to_dict().items():
        if "dropout" in name and isinstance(value, float | int):
            setattr(encoder_config, name, dropout)
