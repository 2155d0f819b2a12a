"""Two workers see the statistics of one worker on the whole batch."""

from collections.abc import Callable
from functools import partial
from itertools import product
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from timm.layers import BatchNormAct2d

from mnerqg.model.norm import (
    SynchronizedBatchNorm1d,
    SynchronizedBatchNormAct2d,
    normalise_by_stored,
    synchronize_batch_norms,
)

CHANNELS = 4
SHARES = {
    "equal": (3, 3),
    "unequal": (5, 1),
    "empty": (6, 0),
    "nothing anywhere": (0, 0),
    "one value": (1, 0),
}


def inputs(name: str, kind: str = "BatchNorm2d") -> tuple[torch.Tensor, torch.Tensor, tuple[int, int]]:
    """The whole batch [N, C, H, W] or [N, C, L], weights of a loss over it, and how many rows each worker has."""
    shares = SHARES[name]
    generator = torch.Generator().manual_seed(len(name))
    shape = (sum(shares), CHANNELS, *((1, 1) if name == "one value" else (3, 2)))
    states = torch.randn(shape, generator=generator) * 2 + 0.5
    weights = torch.randn(shape, generator=generator)
    if kind == "BatchNorm1d":
        states, weights = states.flatten(2), weights.flatten(2)
    return states, weights, shares


KINDS = {
    "BatchNorm1d": torch.nn.BatchNorm1d,
    "BatchNorm2d": torch.nn.BatchNorm2d,
    "BatchNormAct2d": partial(BatchNormAct2d, act_layer=torch.nn.SiLU),
}


def norm(kind: str = "BatchNorm2d") -> torch.nn.Module:
    module = KINDS[kind](CHANNELS)
    with torch.no_grad():
        module.weight.copy_(torch.linspace(0.5, 2, CHANNELS))
        module.bias.copy_(torch.linspace(-1, 1, CHANNELS))
    return module


def run(
    module: torch.nn.Module,
    states: torch.Tensor,
    weights: torch.Tensor,
    normalise: Callable[[torch.nn.Module, torch.Tensor], torch.Tensor] = torch.nn.Module.__call__,
) -> dict[str, torch.Tensor]:
    """Two training steps; outputs, gradients and statistics after the second."""
    for _ in range(2):
        module.zero_grad()
        leaf = states.clone().requires_grad_()
        output = normalise(module, leaf)
        (output.square() * weights).sum().backward()
    assert leaf.grad is not None
    return {
        "output": output.detach(),
        "input gradient": leaf.grad,
        "weight gradient": module.weight.grad,
        "bias gradient": module.bias.grad,
        "mean": module.running_mean,
        "variance": module.running_var,
        "evaluated": module.eval()(states).detach(),
    }


def worker(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    results = {}
    for kind, name in product(KINDS, SHARES):
        states, weights, shares = inputs(name, kind)
        mine = slice(0, shares[0]) if rank == 0 else slice(shares[0], None)
        module = torch.nn.Sequential(norm(kind))
        synchronize_batch_norms(module)
        results[f"{name} {kind}"] = run(module[0], states[mine], weights[mine])
    states, weights, shares = inputs("unequal", "BatchNorm1d")
    mine = slice(0, shares[0]) if rank == 0 else slice(shares[0], None)
    for name, who in {"by stored, of one": (1,), "by stored, of all": (0, 1)}.items():
        module = torch.nn.Sequential(norm("BatchNorm1d"))
        synchronize_batch_norms(module)
        way = {"normalise": normalise_by_stored} if rank in who else {}
        results[name] = run(module[0], states[mine], weights[mine], **way)
    torch.save(results, Path(folder) / f"{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, dict[str, torch.Tensor]]]:
    folder = tmp_path_factory.mktemp("workers")
    mp.spawn(worker, args=(str(folder),), nprocs=2)
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(2)]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["equal", "unequal", "empty"])
def test_two_workers_are_one(found: list[dict[str, dict[str, torch.Tensor]]], name: str, kind: str) -> None:
    states, weights, _ = inputs(name, kind)
    expected = run(norm(kind), states, weights)
    parts = [results[f"{name} {kind}"] for results in found]
    for key in ("output", "input gradient", "evaluated"):
        torch.testing.assert_close(
            torch.cat([part[key] for part in parts]), expected[key], atol=1e-5, rtol=1e-5
        )
    for key in ("weight gradient", "bias gradient"):
        torch.testing.assert_close(sum(part[key] for part in parts), expected[key], atol=1e-5, rtol=1e-5)
    for key in ("mean", "variance"):
        for part in parts:
            torch.testing.assert_close(part[key], expected[key], atol=1e-5, rtol=1e-5)


def test_a_step_without_anything_leaves_the_statistics(
    found: list[dict[str, dict[str, torch.Tensor]]],
) -> None:
    for results, kind in product(found, KINDS):
        of_nothing = results[f"nothing anywhere {kind}"]
        assert torch.equal(of_nothing["mean"], torch.zeros(CHANNELS))
        assert torch.equal(of_nothing["variance"], torch.ones(CHANNELS))
        assert of_nothing["weight gradient"].isfinite().all()


def test_a_single_value_does_not_break_the_statistics(
    found: list[dict[str, dict[str, torch.Tensor]]],
) -> None:
    for results, kind in product(found, KINDS):
        assert all(tensor.isfinite().all() for tensor in results[f"one value {kind}"].values())


def test_alone_it_is_batch_norm() -> None:
    states, weights, _ = inputs("equal")
    module = torch.nn.Sequential(norm())
    synchronize_batch_norms(module)
    for key, tensor in run(module[0], states, weights).items():
        torch.testing.assert_close(tensor, run(norm(), states, weights)[key])


def test_every_kind_of_timm_s_backbones_is_turned_and_keeps_what_it_has() -> None:
    """Before, timm's BatchNormAct2d and BatchNorm1d stayed what they were: a worker's own statistics."""
    act = BatchNormAct2d(CHANNELS, act_layer=torch.nn.LeakyReLU, act_kwargs={"negative_slope": 0.1})
    module = torch.nn.Sequential(torch.nn.BatchNorm1d(CHANNELS), act)
    synchronize_batch_norms(module)
    assert [type(child) for child in module] == [SynchronizedBatchNorm1d, SynchronizedBatchNormAct2d]
    states, _, _ = inputs("equal")
    expected = torch.nn.functional.leaky_relu(torch.nn.BatchNorm2d(CHANNELS)(states), 0.1)
    torch.testing.assert_close(module[1](states), expected)
    torch.testing.assert_close(
        module[0](states.flatten(2)), torch.nn.BatchNorm1d(CHANNELS)(states.flatten(2))
    )


def test_only_batch_norms_are_turned_and_their_state_is_kept() -> None:
    module = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 1), torch.nn.Sequential(norm()), torch.nn.LayerNorm(4))
    state = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    synchronize_batch_norms(module)
    assert [type(child).__name__ for child in module.modules()][-3:] == [
        *("Sequential", "SynchronizedBatchNorm2d", "LayerNorm"),
    ]
    assert all(torch.equal(tensor, state[name]) for name, tensor in module.state_dict().items())


def test_one_worker_normalises_by_what_is_stored_and_another_by_its_batch(
    found: list[dict[str, dict[str, torch.Tensor]]],
) -> None:
    """As where one worker's posts have a phrase each and another's have several; both are in the same sums."""
    states, weights, (first, _) = inputs("unequal", "BatchNorm1d")
    by_batch, by_stored = (results["by stored, of one"] for results in found)
    expected = run(norm("BatchNorm1d"), states[:first], weights[:first])
    torch.testing.assert_close(by_batch, expected, atol=1e-5, rtol=1e-5)
    after_one_step = norm("BatchNorm1d")
    after_one_step(states[:first])
    torch.testing.assert_close(by_stored["output"], after_one_step.eval()(states[first:]))
    for key in ("mean", "variance"):
        torch.testing.assert_close(by_stored[key], expected[key], atol=1e-5, rtol=1e-5)


def test_what_is_stored_stays_where_all_normalise_by_it(
    found: list[dict[str, dict[str, torch.Tensor]]],
) -> None:
    states, weights, (first, _) = inputs("unequal", "BatchNorm1d")
    parts = [(states[:first], weights[:first]), (states[first:], weights[first:])]
    for results, (some, their_weights) in zip(found, parts, strict=True):
        expected = run(norm("BatchNorm1d").eval(), some, their_weights)
        torch.testing.assert_close(results["by stored, of all"], expected)
