"""Batch normalisation over all workers of a step.

torch.nn.SyncBatchNorm refuses CPU tensors; this one runs wherever the process group does, so that N workers
see the statistics, and hence the gradients, of one worker on the whole batch.
"""

from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from timm.layers import BatchNormAct2d
from torch import Tensor, nn


class _SumOverWorkers(torch.autograd.Function):
    """All-reduce whose gradient is the sum of the workers' gradients.

    torch.distributed.nn.functional.all_reduce does the same, but torch 2.15 warns at each call that it is deprecated
    and names a private module in its place.
    """

    @staticmethod
    def forward(_context: Any, values: Tensor) -> Tensor:
        total = values.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(_context: Any, gradient: Tensor) -> Tensor:
        total = gradient.clone()
        dist.all_reduce(total)
        return total


class SynchronizedBatchNorm1d(nn.BatchNorm1d):
    """BatchNorm1d whose training statistics are those of all workers together."""

    def forward(self, states: Tensor) -> Tensor:
        """[N, C] or [N, C, L] -> the same; N may differ between workers and be zero."""
        return _normalise(self, states) if _is_shared(self) else super().forward(states)


class SynchronizedBatchNorm2d(nn.BatchNorm2d):
    """BatchNorm2d likewise."""

    def forward(self, states: Tensor) -> Tensor:
        """[N, C, H, W] -> [N, C, H, W]; N may differ between workers and be zero."""
        return _normalise(self, states) if _is_shared(self) else super().forward(states)


class SynchronizedBatchNormAct2d(BatchNormAct2d):
    """timm's BatchNorm with dropout and activation behind it (Darknet, EfficientNet, MobileNet, RegNet), likewise."""

    def forward(self, x: Tensor) -> Tensor:
        """[N, C, H, W] -> [N, C, H, W]; N may differ between workers and be zero."""
        if not _is_shared(self):
            return super().forward(x)
        activated: Tensor = self.act(self.drop(_normalise(self, x)))
        return activated


# All the kinds that timm's backbones with maps at strides 8, 16 and 32 have.
_SYNCHRONIZED: dict[type[nn.Module], type[nn.Module]] = {
    nn.BatchNorm1d: SynchronizedBatchNorm1d,
    nn.BatchNorm2d: SynchronizedBatchNorm2d,
    BatchNormAct2d: SynchronizedBatchNormAct2d,
}


def synchronize_batch_norms(module: nn.Module) -> None:
    """Turn every batch normalisation inside `module` into its synchronised kind, all that it holds kept."""
    for child in module.modules():
        child.__class__ = _SYNCHRONIZED.get(type(child), type(child))


def normalise_by_stored(norm: nn.BatchNorm1d, states: Tensor) -> Tensor:
    """[N, C] by the stored statistics, which are left as they are, in training too.

    Other workers may have a batch in this step by which they normalise: in their sums this one takes part with nothing.
    """
    assert norm.running_mean is not None
    assert norm.running_var is not None
    # Copies: the others' batch changes them before the backward pass needs them.
    mean, variance = norm.running_mean.clone(), norm.running_var.clone()
    normalised = F.batch_norm(states, mean, variance, norm.weight, norm.bias, eps=norm.eps)
    return torch.cat([normalised, norm(states[:0])]) if _is_shared(norm) else normalised


def _is_shared(norm: nn.BatchNorm1d | nn.BatchNorm2d) -> bool:
    """Whether the statistics are to be the batch's, of which other workers have parts."""
    return norm.training and dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def _normalise(norm: nn.BatchNorm1d | nn.BatchNorm2d, states: Tensor) -> Tensor:
    """[N, C, ...] by the statistics of all workers' states together."""
    values = states if states.dtype == torch.float64 else states.float()
    others = [0, *range(2, values.ndim)]
    shape = (-1, *[1] * (values.ndim - 2))
    count = values.new_full((1,), float(values.numel() // norm.num_features))
    total, count = _sum(torch.cat([values.sum(others), count])).split([norm.num_features, 1])
    seen = count.clamp(min=1)  # no worker at all may have a picture
    mean = total / seen
    centred = values - mean.view(shape)
    # In a second pass: the difference of two large sums would lose the digits that the gradients need.
    variance = _sum(centred.square().sum(others)) / seen
    _update_statistics(norm, mean.detach(), variance.detach(), count.detach())
    scale = norm.weight * torch.rsqrt(variance + norm.eps)
    return (centred * scale.view(shape) + norm.bias.view(shape)).to(states.dtype)


@torch.no_grad()
def _update_statistics(
    norm: nn.BatchNorm1d | nn.BatchNorm2d, mean: Tensor, variance: Tensor, count: Tensor
) -> None:
    momentum = (norm.momentum if norm.momentum is not None else 0.1) * count.sign()
    assert norm.running_mean is not None
    assert norm.running_var is not None
    norm.running_mean.lerp_(mean, momentum)
    norm.running_var.lerp_(variance * count / (count - 1).clamp(min=1), momentum)


def _sum(values: Tensor) -> Tensor:
    return _SumOverWorkers.apply(values)
