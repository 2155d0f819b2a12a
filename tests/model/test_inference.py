from copy import deepcopy
from dataclasses import replace
from itertools import chain
from typing import Any

import numpy as np
import pytest
import torch
from timm.layers import Conv2dSame
from torch import nn

from mnerqg.config import Config
from mnerqg.inputs.batch import Batch
from mnerqg.inputs.examples import Example
from mnerqg.model.build import Network, build_collator
from mnerqg.model.finder import Finder
from mnerqg.model.inference import (
    GeluLinear,
    _with_gelus_in_products,
    compile_parts,
    padding_by_itself,
    ready_to_answer,
)
from mnerqg.model.mnerqg import MNERQG
from mnerqg.model.output import Output
from mnerqg.model.packing import ACTIVATIONS, PackedConvolution, PackedLinear
from tests.archives import TEXTS
from tests.builders import (
    SIDE,
    annotated_examples,
    example,
    small_config,
    small_network,
    text_encoder,
)
from tests.device_waits import NoWaits

CPU = torch.device("cpu")


def ready(network: Network, dtype: torch.dtype = torch.float32) -> Network:
    return ready_to_answer(network, device=CPU, dtype=dtype)


def trained(config: Config) -> Network:
    """With statistics and heads of some size, as after training."""
    network = small_network(config)
    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.normal_(std=0.1)
                module.running_var.uniform_(0.5, 2)
                module.weight.uniform_(0.5, 1.5)
                module.bias.normal_(std=0.1)
        for name, parameter in network.named_parameters():
            if name.startswith(("spans.start", "spans.end", "spans.match", "spans.existence.", "project")):
                parameter.normal_(std=0.5)
    return network.eval()


def batch_of(config: Config, examples: list[Example]) -> Batch:
    return build_collator(config, text_encoder())(examples, with_targets=False)


def finder(network: Network, config: Config) -> Finder:
    return Finder(network, text_encoder=text_encoder(), config=config, device=CPU)


def logits(output: Output, batch: Batch) -> list[torch.Tensor]:
    """All that is looked at of an output."""
    found = []
    if output.spans is not None:
        pairs = torch.ones_like(batch.attention_mask).nonzero()
        found.append(output.spans.existence_logits)
        found += [part[batch.attention_mask] for part in (output.spans.start_logits, output.spans.end_logits)]
        found.append(
            output.spans.match.at(torch.cat([pairs, pairs[:, 2:]], 1))[batch.attention_mask.flatten()]
        )
    if output.box_logits is not None:
        found.append(output.box_logits)
    if output.words is not None:
        found.append(output.words.labels[batch.begins_word[:, 0]])
    return found


BACKBONES = (
    "resnet10t",
    "darknet53",
    "tf_efficientnet_lite0",
    "mobilenetv3_small_050",
    "regnety_002",
)


@pytest.mark.parametrize("name", BACKBONES)
def test_folded_norms_give_the_same_maps(name: str) -> None:
    """All normalisations of each backbone, timm's own kind too."""
    config = small_config(backbone=name)
    network = trained(config)
    folded = ready(network)
    assert not any(isinstance(part, nn.BatchNorm2d) for part in folded.modules())
    pixels = torch.randint(256, (2, 3, SIDE, SIDE), dtype=torch.uint8)
    with torch.inference_mode():
        for one, other in zip(network.visual(pixels), folded.visual(pixels), strict=True):
            torch.testing.assert_close(other, one, rtol=0, atol=1e-5 * float(one.abs().max()))


@pytest.mark.parametrize("name", ["tf_efficientnet_lite0", "tf_mobilenetv3_small_minimal_100"])
def test_convolutions_pad_by_themselves_as_tensorflow_does(name: str) -> None:
    network = trained(small_config(backbone=name))
    padding = [part for part in network.modules() if isinstance(part, Conv2dSame)]
    assert {part.kernel_size for part in padding} >= {(3, 3)}
    answering = ready(network)
    assert not any(isinstance(part, Conv2dSame) for part in answering.modules())
    # Odd kernels at an even stride, in which the two sides differ, and the borders of the map with them.
    for convolution in [*padding, Conv2dSame(2, 3, 5, stride=2), Conv2dSame(2, 3, (3, 4), stride=(2, 1))]:
        seen = torch.randn(1, convolution.in_channels, 8, 12)
        with torch.no_grad():
            torch.testing.assert_close(padding_by_itself(convolution)(seen), convolution(seen))


@pytest.mark.parametrize("name", BACKBONES)
def test_layers_are_packed_with_the_activations_behind_them(name: str) -> None:
    """Nothing is left but the ReLU at the end of a block, which is given a sum."""
    answering = ready(trained(small_config(backbone=name)))
    left = [part for part in answering.modules() if isinstance(part, (nn.Linear, nn.Conv2d, *ACTIVATIONS))]
    assert {type(part) for part in left} <= {nn.ReLU}
    assert len(left) == {"resnet10t": 4, "regnety_002": 13}.get(name, 0)


def test_what_is_to_be_compiled_or_is_bf16_is_not_packed() -> None:
    network = trained(small_config())
    compiled = ready_to_answer(network, device=CPU, compiled=True)
    for other in (compiled, ready(network, torch.bfloat16)):
        assert not any(isinstance(part, PackedLinear | PackedConvolution) for part in other.modules())


class _Shared(nn.Module):
    """A convolution whose output two parts take: its normalisation is not to be taken into it."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner
        self.convolution = nn.Conv2d(3, 3, 1)
        self.norm = nn.BatchNorm2d(3).eval()
        self.norm.running_mean.fill_(2.0)

    def forward(self, pixels: torch.Tensor) -> Any:
        seen = self.convolution(pixels)
        return self.inner(self.norm(seen) + seen)


def test_a_convolution_that_is_wanted_elsewhere_keeps_its_norm() -> None:
    config = small_config()
    network = trained(config)
    assert isinstance(network, MNERQG)
    assert network.visual is not None
    network.visual.backbone.net = _Shared(network.visual.backbone.net)
    pixels = torch.randint(256, (1, 3, SIDE, SIDE), dtype=torch.uint8)
    with torch.inference_mode():
        before = network.visual(pixels)
        after = ready(network).visual(pixels)
    for one, other in zip(before, after, strict=True):
        torch.testing.assert_close(one, other)


VARIANTS: dict[str, dict[str, Any]] = {
    "the paper's": {},
    "hidden match layer": {"match_hidden": 8},
    "aligned": {
        "match_hidden": 8,
        "query_alone": True,
        "query_map": True,
        "query_gradient": 0.1,
        "region_existence": True,
    },
    "text": {"inputs": "text", "grounding": False},
    "without grounding": {"grounding": False},
    "grounding alone": {"inputs": "picture"},
    "bio": {"tagger": "bio", "inputs": "text", "grounding": False},
    "crf": {"tagger": "crf", "inputs": "text", "grounding": False},
}
ODD: dict[str, list[Example]] = {
    "several": annotated_examples(),
    "real texts": [example(text or "", picture=number) for number, (text, _) in enumerate(TEXTS)],
    "one piece": [example("x", picture=None)],
    "no text": [example("")],
    "no pictures": [example(picture=None), example("the BBC", picture=None)],
    "one post": [example()],
    "very long": [example("Ada in Oslo " * 25_000), example("x", picture=None)],
}


@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize("odd", ODD)
def test_answers_are_those_of_the_network_itself(name: str, odd: str) -> None:
    """In float32 to the fifth digit, and entities and regions exactly; in bfloat16 what it can."""
    config = small_config(**VARIANTS[name])
    network = trained(config)
    examples = [replace(one, letterbox=None) for one in ODD[odd]]
    batch = batch_of(config, examples)
    with torch.inference_mode():
        expected, exact = network(batch), ready(network)(batch)
        rough = ready(network, torch.bfloat16)(batch)
    for one, other, third in zip(
        *(logits(output, batch) for output in (expected, exact, rough)), strict=True
    ):
        torch.testing.assert_close(other, one, atol=1e-4, rtol=1e-4)
        assert _far(third, one) < 0.25
    thresholds = config.decode.model_copy(update={"span_threshold": 0.3, "match_threshold": 0.3})
    one, other = (
        finder(given, config).at_each(examples, [thresholds])[0] for given in (network, ready(network))
    )
    np.testing.assert_array_equal(one.spans, other.spans)
    np.testing.assert_array_equal(one.boxes, other.boxes)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", VARIANTS)
def test_a_network_that_is_ready_keeps_nothing_of_the_other(name: str, dtype: torch.dtype) -> None:
    """That one may learn on, or its weights be mapped from a file that is written over."""
    config = small_config(**VARIANTS[name])
    network = trained(config)
    batch = batch_of(config, [example(), example("the BBC", picture=None)])
    with torch.inference_mode():
        expected = logits(ready(network, dtype)(batch), batch)
    asked = ready(network, dtype)
    with torch.no_grad():
        for tensor in chain(network.parameters(), network.buffers()):
            tensor.fill_(float("nan") if tensor.is_floating_point() else 1)
    with torch.inference_mode():
        found = logits(asked(batch), batch)
    for one, other in zip(expected, found, strict=True):
        torch.testing.assert_close(other, one)


def _far(one: torch.Tensor, other: torch.Tensor) -> float:
    """The largest difference, in shares of the largest value."""
    if not one.numel():
        return 0.0
    return float((one.float() - other).abs().max() / other.abs().max().clamp(min=1))


@pytest.mark.parametrize("name", [name for name in VARIANTS if name != "crf"])
def test_the_host_never_waits_for_the_device_in_a_forward(name: str) -> None:
    config = small_config(**VARIANTS[name])
    network = ready(trained(config))
    asked = finder(network, config)
    batches = [batch_of(config, examples) for examples in ODD.values()]
    with torch.inference_mode(), NoWaits():
        for batch in batches:
            asked.answers(batch, 0.5)


@pytest.mark.slow
def test_every_part_is_one_graph_and_survives_odd_posts() -> None:
    """Before, a forward fell into 14 graphs. They are run as they are here, whatever a compiler would make of them."""
    config = small_config()
    network = trained(config)
    compiled = ready_to_answer(network, device=CPU, compiled=True)
    compile_parts(compiled, fullgraph=True, backend="eager")
    with torch.inference_mode():
        for examples in [*ODD.values(), annotated_examples() * 3]:
            batch = batch_of(config, examples)
            for one, other in zip(logits(network(batch), batch), logits(compiled(batch), batch), strict=True):
                torch.testing.assert_close(other, one, atol=1e-4, rtol=1e-4)


def test_a_backbone_that_fails_a_trial_pass_is_left_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """Some are for pictures of one size alone."""
    network = trained(small_config())
    usual = type(network.visual).forward

    def forward(self: nn.Module, pixels: torch.Tensor) -> Any:
        if len(pixels) == 1:
            raise AssertionError("for two pictures alone")
        return usual(self, pixels)

    monkeypatch.setattr(type(network.visual), "forward", forward)
    answering = ready(network)
    pixels = torch.randint(256, (2, 3, SIDE, SIDE), dtype=torch.uint8)
    with torch.inference_mode():
        for one, other in zip(network.visual(pixels), answering.visual(pixels), strict=True):
            torch.testing.assert_close(other, one)


def test_a_network_made_ready_again_has_no_kernel_of_a_gpu() -> None:
    network = ready(trained(small_config()))
    network.grounding.head.kernel = lambda *_: pytest.fail("a kernel ran on a CPU")
    batch = batch_of(small_config(), annotated_examples())
    with torch.inference_mode():
        assert ready(network)(batch).box_logits.isfinite().all()


def test_gelus_are_part_of_the_products_before_them() -> None:
    """On a CPU torch bends exactly; a GPU by the tanh."""
    config = small_config()
    network = trained(config)
    bending = deepcopy(network)
    bending.text.encoder = _with_gelus_in_products(bending.encoder)
    assert sum(isinstance(part, GeluLinear) for part in bending.modules()) == 2
    batch = batch_of(config, annotated_examples())
    with torch.inference_mode():
        for one, other in zip(logits(network(batch), batch), logits(bending(batch), batch), strict=True):
            torch.testing.assert_close(other, one, atol=1e-5, rtol=1e-5)


@pytest.mark.gpu
@pytest.mark.parametrize("name", VARIANTS)
def test_a_gpu_answers_in_bf16_what_the_network_does(name: str) -> None:
    config = small_config(**VARIANTS[name])
    network = trained(config)
    fast = ready_to_answer(network, device=torch.device("cuda"), dtype=torch.bfloat16)
    batch = batch_of(config, annotated_examples())
    with torch.inference_mode():
        expected, found = logits(network(batch), batch), logits(fast(batch.to("cuda")), batch.to("cuda"))
    for one, other in zip(expected, found, strict=True):
        assert _far(other.cpu(), one) < 0.25


def test_weights_are_cast_once_and_what_takes_logits_is_not() -> None:
    network = trained(small_config(match_hidden=8))
    cast = ready(network, torch.bfloat16)
    exact = {name for name, parameter in cast.named_parameters() if parameter.dtype == torch.float32}
    assert exact == {"spans.match.hidden.weight", "spans.match.hidden.bias"}
    assert {parameter.dtype for parameter in network.parameters()} == {torch.float32}
    assert cast.visual.backbone.mean.dtype == torch.float32
