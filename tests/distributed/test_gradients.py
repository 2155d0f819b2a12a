"""N data-parallel workers give the gradient of one worker on the same batch.

In double precision: in single, normalising maps of 2 x 2 pixels alone loses the fifth digit.
"""

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch.nn.parallel import DistributedDataParallel

from mnerqg.config import LossConfig
from mnerqg.inputs.examples import Example
from mnerqg.model.losses import LossBalance, loss_terms
from mnerqg.model.mnerqg import MNERQG
from tests.builders import annotated_examples, collator, example, small_model


def _examples() -> list[Example]:
    """Boxes, answers and pictures spread unevenly: the first three posts have all of the boxes."""
    return [
        *annotated_examples()[:3],
        example("Ada in Paris and Oslo", picture=None, spans=((0, 0, 0), (2, 2, 1), (4, 4, 1))),
        example("quiet", picture=5),
    ]


# Which posts each of two workers gets: uneven counts of posts, boxes, answers and pictures.
SHARES = {"uneven": ([0, 1, 2], [3, 4]), "one without pictures": ([0, 1, 2, 4], [3])}


def _backward(model: MNERQG, network: torch.nn.Module, examples: list[Example], workers: int) -> float:
    batch = collator()(examples, with_targets=True)
    output = network(batch)
    terms = loss_terms(output, batch)

    def reduce(values: torch.Tensor) -> torch.Tensor:
        if workers > 1:
            dist.all_reduce(values)
        return values

    loss = LossBalance(LossConfig())(terms, reduce=reduce, workers=workers)
    loss.total.backward()
    return loss.balance


def _worker(rank: int, folder: str, shares: tuple[list[int], ...]) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=len(shares))
    model = small_model().double()
    examples = _examples()
    mine = [examples[index] for index in shares[rank]]
    balance = _backward(model, DistributedDataParallel(model), mine, workers=len(shares))
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    torch.save({"balance": balance, "gradients": gradients, "buffers": dict(model.named_buffers())},
               Path(folder) / f"{rank}.pt")  # fmt: skip
    dist.destroy_process_group()


@pytest.mark.parametrize("name", SHARES)
def test_two_workers_give_the_gradients_of_one(tmp_path: Path, name: str) -> None:
    shares = SHARES[name]
    mp.spawn(_worker, args=(str(tmp_path), shares), nprocs=2)

    model = small_model().double()
    examples = _examples()
    balance = _backward(model, model, [examples[index] for share in shares for index in share], workers=1)
    expected = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}

    for rank in range(2):
        found = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        assert found["balance"] == pytest.approx(balance, rel=1e-5)
        assert found["gradients"].keys() == expected.keys()
        for key, gradient in expected.items():
            difference = float((found["gradients"][key] - gradient).abs().max())
            assert difference < 1e-5, f"{key} differs by {difference}"
