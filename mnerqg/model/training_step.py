"""One step of training: forward, losses, backward, optimizer."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mnerqg.config import Config
from mnerqg.inputs.batch import Batch
from mnerqg.model.losses import LossBalance, loss_terms

# What a step says of itself; the gradient's norm is that before clipping.
FIGURES = ("loss", "loss_grounding", "loss_existence", "loss_spans", "mean_balance", "gradient_norm")


@dataclass(frozen=True)
class TrainingStep:
    """Called with a batch on the device it makes one optimizer step and answers with its `FIGURES`.

    They stay on the device like all else: the host does not wait for it.

    Attributes:
        network: that learns.
        parallel: what is called for its output: itself, or what wraps it for data parallelism.
        optimizer, balance: of the network; they change with each step.
        bf16: whether its forward is in bf16 by autocast.
        reduce, workers: see `LossBalance`.
    """

    network: nn.Module
    parallel: nn.Module
    optimizer: torch.optim.Optimizer
    balance: LossBalance
    config: Config
    bf16: bool
    reduce: Callable[[Tensor], Tensor] = lambda values: values
    workers: int = 1

    def __call__(self, batch: Batch) -> Tensor:
        with torch.autocast(batch.attention_mask.device.type, torch.bfloat16, enabled=self.bf16):
            output = self.parallel(batch)
        terms = loss_terms(output, batch, self.config.loss)
        loss = self.balance(terms, reduce=self.reduce, workers=self.workers)
        self.optimizer.zero_grad(set_to_none=True)
        loss.total.backward()
        norm = torch.nn.utils.clip_grad_norm_(self.network.parameters(), self.config.train.clip_norm)
        self.optimizer.step()
        losses = (loss.value, loss.grounding, loss.existence, loss.spans)
        return torch.stack([*losses, loss.balance, norm])
