import pytest
import torch

from mnerqg.config import TrainConfig
from mnerqg.model.optimization import (
    build_optimizer,
    learning_rate_factor,
    learning_rates,
    progress_at,
    set_learning_rates,
)
from tests.builders import small_config, small_model

CONFIG = TrainConfig(lr=1e-3, encoder_lr=1e-4, backbone_lr=0.0, weight_decay=0.05)


def test_every_trained_parameter_is_in_one_group() -> None:
    model = small_model()
    model.visual.backbone.net.requires_grad_(False)
    optimizer = build_optimizer(model, CONFIG)
    held = [id(parameter) for group in optimizer.param_groups for parameter in group["params"]]
    assert sorted(held) == sorted(id(p) for p in model.parameters() if p.requires_grad)


def test_each_part_has_its_rate_and_only_matrices_decay() -> None:
    model = small_model()
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    seen = set()
    for group in build_optimizer(model, CONFIG).param_groups:
        for parameter in group["params"]:
            name = names[id(parameter)]
            if name.startswith("text.encoder."):
                rate = 1e-4
            elif name.startswith("visual.backbone."):
                rate = 0.0
            else:
                rate = 1e-3
            assert group["lr"] == group["base_lr"] == rate, name
            plain = parameter.ndim < 2 or name.endswith(".labels") or "norm" in name.lower()
            assert group["weight_decay"] == (0.0 if plain else 0.05), name
            seen.add((rate, plain))
    assert len(seen) == 6


def test_an_epochs_record_has_the_rate_of_each_part() -> None:
    optimizer = build_optimizer(small_model(), CONFIG)
    set_learning_rates(optimizer, 0.5)
    assert learning_rates(optimizer) == {
        "learning_rate_encoder": 5e-5,
        "learning_rate_backbone": 0.0,
        "learning_rate_heads": 5e-4,
    }


def test_one_rate_where_no_other_is_given() -> None:
    optimizer = build_optimizer(small_model(), TrainConfig(lr=2e-5))
    assert {group["lr"] for group in optimizer.param_groups} == {2e-5}


@pytest.mark.parametrize(
    ("progress", "warmup", "factor"),
    [
        (0, 0.1, 0),
        (0.05, 0.1, 0.5),
        (0.1, 0.1, 1),
        (0.55, 0.1, 0.5),
        (1, 0.1, 0),
        (0, 0, 1),
        (0.5, 0, 0.5),
        (0.5, 1, 0.5),
        (1, 1, 0),
    ],
)
def test_warm_up_then_linear_decay(progress: float, warmup: float, factor: float) -> None:
    assert learning_rate_factor(progress, warmup) == pytest.approx(factor)


@pytest.mark.parametrize("warmup", [0.0, 0.1, 1.0])
def test_the_first_step_and_the_last_one_teach(warmup: float) -> None:
    """Before, the last one had the rate 0."""
    progress = [progress_at(epoch, step, 5, 2) for epoch in range(2) for step in range(1, 6)]
    assert progress == pytest.approx([0.05 + 0.1 * step for step in range(10)])
    assert min(learning_rate_factor(at, warmup) for at in progress) > 0.04
    assert progress_at(1, 6, 5, 2) == progress[-1]


def test_rates_are_scaled_from_their_base_each_time() -> None:
    optimizer = build_optimizer(small_model(small_config(width=8)), CONFIG)
    for factor in (0.5, 0.25):
        set_learning_rates(optimizer, factor)
        assert {group["lr"] for group in optimizer.param_groups} == {1e-3 * factor, 1e-4 * factor, 0.0}
    restored = build_optimizer(small_model(small_config(width=8)), CONFIG)
    restored.load_state_dict(optimizer.state_dict())
    set_learning_rates(restored, 1.0)
    assert {group["lr"] for group in restored.param_groups} == {1e-3, 1e-4, 0.0}


def test_a_step_moves_the_parameters() -> None:
    model = small_model(small_config(width=8))
    optimizer = build_optimizer(model, CONFIG)
    before = model.spans.start.project.weight.detach().clone()
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    assert not torch.equal(before, model.spans.start.project.weight)
