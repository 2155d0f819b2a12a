"""AdamW with a learning rate for each part, warm-up and linear decay."""

import torch
from torch import nn

from mnerqg.config import TrainConfig


def build_optimizer(model: nn.Module, config: TrainConfig) -> torch.optim.AdamW:
    """Groups for encoder, backbone and heads; weight decay on matrices only, not on biases, norms and tables."""
    rates = {
        "encoder": config.lr if config.encoder_lr is None else config.encoder_lr,
        "backbone": config.lr if config.backbone_lr is None else config.backbone_lr,
        "heads": config.lr,
    }
    groups: dict[tuple[str, bool], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            decays = parameter.ndim > 1 and not name.endswith(".labels")
            groups.setdefault((_part(name), decays), []).append(parameter)
    return torch.optim.AdamW(
        [
            {
                "params": parameters,
                "part": part,
                "lr": rates[part],
                "base_lr": rates[part],
                "weight_decay": config.weight_decay if decays else 0.0,
            }
            for (part, decays), parameters in groups.items()
        ],
        fused=True,
    )


def progress_at(epoch: int, step: int, steps: int, epochs: int) -> float:
    """The share of the whole training that is done in the middle of a step.

    At its beginning the first step of a warm-up would have the rate 0, at its end the last step of the decay.

    Args:
        epoch: from 0 on, of `epochs`.
        step: from 1 on, of `steps` an epoch; a step more, as another number of workers may make it, counts as the last.
    """
    return (epoch + (min(step, steps) - 0.5) / steps) / epochs


def learning_rate_factor(progress: float, warmup: float) -> float:
    """Linear warm-up, then linear decay to zero, at `progress` in [0, 1] of the whole training.

    A function of progress, not of steps: a run that resumes with another number of workers stays on it.
    """
    if progress < warmup:
        return progress / warmup
    return (1 - progress) / max(1 - warmup, 1e-9)


def set_learning_rates(optimizer: torch.optim.Optimizer, factor: float) -> None:
    """Scale every group's own base rate."""
    for group in optimizer.param_groups:
        group["lr"] = group["base_lr"] * factor


def learning_rates(optimizer: torch.optim.Optimizer) -> dict[str, float]:
    """The rate of each part as it stands, as an epoch's record has it."""
    return {f"learning_rate_{group['part']}": float(group["lr"]) for group in optimizer.param_groups}


def _part(name: str) -> str:
    if name.startswith(("text.encoder.", "encoder.")):
        return "encoder"
    return "backbone" if name.startswith("visual.backbone.") else "heads"
