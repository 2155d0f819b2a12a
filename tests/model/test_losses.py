import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from mnerqg import boxes
from mnerqg.config import LossConfig
from mnerqg.inputs.batch import Batch, Targets
from mnerqg.inputs.examples import Example
from mnerqg.model.build import build_collator
from mnerqg.model.heads import MatchLogits
from mnerqg.model.losses import TERMS, LossBalance, LossTerms, loss_terms
from mnerqg.model.output import Output, SpanLogits
from tests.builders import (
    anchors,
    annotated_examples,
    collator,
    example,
    small_config,
    small_model,
    small_network,
    text_encoder,
)


def random_output(batch: Batch, seed: int = 0) -> Output:
    """Random logits that carry gradients, of the shapes of `batch`."""
    torch.manual_seed(seed)
    posts, queries, pieces = batch.attention_mask.shape

    def leaf(*shape: int) -> Tensor:
        return torch.randn(posts, queries, *shape).requires_grad_()

    return Output(
        spans=SpanLogits(
            existence_logits=leaf(2),
            start_logits=leaf(pieces, 2),
            end_logits=leaf(pieces, 2),
            match=MatchLogits(leaf(pieces, 1), leaf(pieces, 1)),
        ),
        box_logits=leaf(anchors().candidates, 5),
    )


def case(examples: list[Example] | None = None, seed: int = 0) -> tuple[Output, Batch, Targets]:
    batch = collator()(examples or annotated_examples(), with_targets=True)
    assert batch.targets is not None
    return random_output(batch, seed), batch, batch.targets


def cross_entropy(logits: Tensor, label: int) -> float:
    return float((logits.logsumexp(-1) - logits[label]).detach())


def slow_terms(
    output: Output, batch: Batch, targets: Targets, *, best_background: bool
) -> dict[str, tuple[float, int]]:
    """Every term by its definition, element by element."""
    sums = dict.fromkeys(TERMS, 0.0)
    counts = dict.fromkeys(TERMS, 0)

    def add(term: str, value: float) -> None:
        sums[term] += value
        counts[term] += 1

    spans = output.spans
    posts, queries, pieces = batch.attention_mask.shape
    for (p, k, c), target in zip(targets.box_candidates.tolist(), targets.box_targets.tolist(), strict=True):
        tx, ty, tw, th, _ = output.box_logits[p, k, c].tolist()
        found = 1 / (1 + math.exp(-tx)), 1 / (1 + math.exp(-ty)), tw, th
        add("box", sum((a - b) ** 2 for a, b in zip(found, target, strict=True)))
    gold = {tuple(row) for row in targets.pairs[targets.matches == 1].tolist()}
    for p in range(posts):
        for k in range(queries):
            add("existence", cross_entropy(spans.existence_logits[p, k], int(targets.existence[p, k])))
            background: list[float] = []
            for c in range(anchors().candidates):
                kind, logit = int(targets.objectness[p, k, c]), float(output.box_logits[p, k, c, 4])
                if kind == 1:
                    add("object_positive", math.log1p(math.exp(-logit)))
                elif kind == 0:
                    score = 1 / (1 + math.exp(-logit))
                    sums["object_negative"] += score**2 * math.log1p(math.exp(logit))
                    background.append(logit)
            if best_background and background and not (targets.objectness[p, k] == 1).any():
                sums["object_negative"] += math.log1p(math.exp(max(background)))
            counts["object_negative"] += bool(background)
            for i in range(pieces):
                if batch.begins_word[p, k, i]:
                    add("start", cross_entropy(spans.start_logits[p, k, i], int(targets.starts[p, k, i])))
                if batch.ends_word[p, k, i]:
                    add("end", cross_entropy(spans.end_logits[p, k, i], int(targets.ends[p, k, i])))
            for i in range(pieces):
                for j in range(i, pieces):
                    said = bool(batch.begins_word[p, k, i] and batch.ends_word[p, k, j]) and bool(
                        spans.start_logits[p, k, i].argmax() and spans.end_logits[p, k, j].argmax()
                    )
                    if said or (targets.starts[p, k, i] and targets.ends[p, k, j]):
                        logit = float(spans.match.start_share[p, k, i, 0] + spans.match.end_share[p, k, j, 0])
                        right = (p, k, i, j) in gold
                        add("match", math.log1p(math.exp(-logit if right else logit)))
    return {term: (sums[term], counts[term]) for term in TERMS}


@pytest.mark.parametrize(("seed", "best_background"), [(0, False), (1, False), (1, True)])
def test_terms_are_their_definitions(seed: int, best_background: bool) -> None:
    output, batch, targets = case(seed=seed)
    terms = loss_terms(output, batch, LossConfig(best_background=best_background))
    expected = slow_terms(output, batch, targets, best_background=best_background)
    for index, (term, (total, count)) in enumerate(expected.items()):
        assert int(terms.counts[index]) == count, term
        assert count > 0 or term == "words"
        assert float(terms.sums[index].detach()) == pytest.approx(total, rel=1e-4), term


def test_padding_and_query_pieces_are_not_learned_from() -> None:
    output, batch, _ = case()
    terms = loss_terms(output, batch, LossConfig())
    (terms.sums / terms.counts.clamp(min=1)).sum().backward()
    assert output.spans.start_logits.grad is not None
    assert output.spans.end_logits.grad is not None
    assert (output.spans.start_logits.grad[~batch.begins_word] == 0).all()
    assert (output.spans.end_logits.grad[~batch.ends_word] == 0).all()


def test_ignored_and_unknown_candidates_are_not_learned_from() -> None:
    output, batch, targets = case()
    assert (targets.objectness == -1).any()
    terms = loss_terms(output, batch, LossConfig())
    terms.sums.sum().backward()
    assert output.box_logits.grad is not None
    touched = output.box_logits.grad[..., 4] != 0
    assert torch.equal(touched, targets.objectness >= 0)
    boxed = torch.zeros_like(touched)
    boxed[targets.box_candidates.unbind(-1)] = True
    assert torch.equal((output.box_logits.grad[..., :4] != 0).any(-1), boxed)


BARE = {
    "no boxes": [example(spans=((0, 1, 0),), boxes_annotated=True), example("quiet", picture=1)],
    "no entities": [example(boxes_canvas=[[4, 4, 50, 50]], box_types=(1,), boxes_annotated=True)] * 2,
    "no pictures": [example(picture=None, spans=((0, 1, 0),)), example("quiet", picture=None)],
    "no words": [example("", picture=None), example(" ", picture=1)],
    "nothing": [example("", picture=None)],
}


@pytest.mark.parametrize("hidden", [None, 8])
@pytest.mark.parametrize("name", BARE)
def test_whatever_is_missing_every_parameter_gets_a_finite_gradient(name: str, hidden: int | None) -> None:
    model = small_model(small_config(match_hidden=hidden))
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    batch = collator()(BARE[name], with_targets=True)
    assert batch.targets is not None
    terms = loss_terms(model(batch), batch, LossConfig())
    loss = LossBalance(LossConfig())(terms)
    assert math.isfinite(float(loss.total.detach()))
    loss.total.backward()
    for key, parameter in model.named_parameters():
        assert parameter.grad is not None, key
        assert parameter.grad.isfinite().all(), key
    assert all(buffer.isfinite().all() for buffer in model.buffers())
    if not any(one.pixels is not None for one in BARE[name]):
        for key, buffer in model.named_buffers():
            if "running" in key:
                assert torch.equal(buffer, before[key]), f"{key} was moved by a picture that is not there"


def test_bf16_trains_with_a_hidden_match_layer() -> None:
    model = small_model(small_config(match_hidden=8))
    batch = collator()(annotated_examples(), with_targets=True)
    assert batch.targets is not None
    with torch.autocast("cpu", torch.bfloat16):
        output = model(batch)
    terms = loss_terms(output, batch, LossConfig())
    LossBalance(LossConfig())(terms).total.backward()
    assert model.spans.match.start.weight.grad is not None


def test_gradient_descent_on_the_logits_reaches_the_box() -> None:
    gold = torch.tensor([9.0, 17.0, 50.0, 61.0])
    batch = collator()(
        [example(boxes_canvas=[gold.tolist()], box_types=(2,), boxes_annotated=True)], with_targets=True
    )
    assert batch.targets is not None
    output = replace(
        random_output(batch), box_logits=torch.zeros(1, 4, anchors().candidates, 5).requires_grad_()
    )
    optimizer = torch.optim.Adam([output.box_logits], lr=0.2)
    for _ in range(200):
        optimizer.zero_grad()
        terms = loss_terms(output, batch, LossConfig())
        LossBalance(LossConfig(balance="constant"))(terms).grounding.item()
        LossBalance(LossConfig(balance="constant"))(terms).total.backward()
        optimizer.step()
    best = int(output.box_logits[0, 2, :, 4].argmax())
    found = boxes.decode(output.box_logits[0, 2, best], torch.from_numpy(anchors().table()[best]))
    torch.testing.assert_close(found.detach(), gold, atol=0.5, rtol=0)
    assert float(output.box_logits[0, 2, best, 4].sigmoid()) > 0.9
    assert float(output.box_logits[0, :2, :, 4].sigmoid().max()) < 0.1


def terms_of(means: list[float]) -> LossTerms:
    """Terms with the given means over two elements each; no word labels."""
    return LossTerms(
        2 * torch.tensor([*means, 0.0], dtype=torch.float32, requires_grad=True), torch.full((8,), 2.0)
    )


def test_the_weighted_sum() -> None:
    config = LossConfig(
        balance="constant", grounding_weight=7, existence_weight=3, span_weight=2, box_weight=5
    )
    loss = LossBalance(config)(terms_of([1, 2, 3, 4, 5, 6, 7]))
    assert (float(loss.grounding), float(loss.existence), float(loss.spans)) == (10, 4, 18)
    assert float(loss.total.detach()) == 7 * 10 + 3 * 4 + 2 * 18
    assert loss.balance == 1
    assert not loss.grounding.requires_grad


def test_the_balance_is_the_ratio_of_running_losses() -> None:
    balance = LossBalance(LossConfig(balance_momentum=0.9, box_weight=1))
    first = balance(terms_of([0, 1, 1, 1, 0.5, 0.25, 0.25]))  # ED + 2 ESP = 3, QG = 2
    assert float(first.balance) == pytest.approx(3 / 2)
    assert float(first.total.detach()) == pytest.approx(1.5 * 2 + 1 + 2)
    second = balance(terms_of([0, 4, 8, 1, 0, 0, 0]))  # 1 and 12
    assert float(second.balance) == pytest.approx((0.9 * 3 + 0.1 * 1) / (0.9 * 2 + 0.1 * 12))
    assert balance.running.tolist() == pytest.approx([0, 1.3, 1.7, 1, 0.45, 0.225, 0.225, 0])


def steps_with_pictures(one_in: int, boxed: tuple[float, float] = (2.0, 2.0)) -> float:
    """ω_f after 400 steps of which one in so many has annotated pictures; counts of box and positives as given."""
    balance = LossBalance(LossConfig(box_weight=1))
    for step in range(400):
        counts = torch.tensor([*boxed, 2, 2, 2, 2, 2, 0]) * torch.tensor(
            [step % one_in == 0] * 3 + [True] * 5
        )
        means = torch.tensor([1, 1, 0.5, 0.45, 0.25, 0.25, 0, 0], requires_grad=True)  # QG 2.5, MNER 1.45
        loss = balance(LossTerms(means * counts, counts))
    return float(loss.balance)


def test_a_step_without_annotated_pictures_says_nothing_of_the_grounding() -> None:
    """Before, its L_QG was 0 and lowered the average: with one step of four annotated ω_f was 2.40 for 0.58."""
    assert steps_with_pictures(1) == pytest.approx(0.58)
    assert steps_with_pictures(4) == pytest.approx(0.58)


def test_a_step_of_pictures_without_a_box_says_nothing_of_boxes() -> None:
    balance = LossBalance(LossConfig(box_weight=1))
    full = LossTerms(torch.tensor([2.0, 2, 1, 1, 1, 1, 0, 0], requires_grad=True), torch.full((8,), 2.0))
    background = LossTerms(full.sums, torch.tensor([0.0, 0, 2, 2, 2, 2, 0, 0]))
    first = float(balance(full).balance)
    second = balance(replace(background, sums=full.sums * background.counts / 2)).balance
    assert float(second) == pytest.approx(first)


def test_a_loss_without_weight_does_not_steer_the_balance() -> None:
    without = LossBalance(LossConfig(box_weight=1, existence_weight=0))
    assert without(terms_of([0, 1, 1, 50, 0.5, 0.25, 0.25])).balance == pytest.approx(2 / 2)
    # The grounding's own weight is no part of ω_f: it comes on top.
    halved = LossBalance(LossConfig(box_weight=1, grounding_weight=0.5))(
        terms_of([0, 1, 1, 1, 0.5, 0.25, 0.25])
    )
    assert float(halved.balance) == pytest.approx(3 / 2)
    assert float(halved.total.detach()) == pytest.approx(1.5 * 0.5 * 2 + 1 + 2)


@pytest.mark.parametrize(
    ("means", "expected"), [([0, 1e6, 0, 1, 1, 1, 1], 0.1), ([0, 1e-6, 0, 1, 1, 1, 1], 10), ([0] * 7, 0.1)]
)
def test_the_balance_is_clamped(means: list[float], expected: float) -> None:
    assert float(LossBalance(LossConfig())(terms_of(means)).balance) == pytest.approx(expected)


def test_the_balance_carries_no_gradient() -> None:
    terms = terms_of([1, 1, 1, 1, 1, 1, 1])
    loss = LossBalance(LossConfig())(terms)
    (gradient,) = torch.autograd.grad(loss.total, terms.sums)
    balance = float(loss.balance)
    expected = [5 * balance, balance, balance, 1, 2, 2, 2, 2]
    torch.testing.assert_close(gradient, torch.tensor(expected) / 2)


def test_a_restored_balance_goes_on() -> None:
    one, two = LossBalance(LossConfig()), LossBalance(LossConfig())
    one(terms_of([1, 2, 3, 4, 5, 6, 7]))
    two.running = one.running
    again = terms_of([7, 6, 5, 4, 3, 2, 1])
    assert one(again).balance == two(again).balance


def test_workers_see_global_means_and_scale_their_share() -> None:
    mine = LossTerms(torch.ones(8, requires_grad=True), torch.ones(8))
    other = torch.stack([torch.full((8,), 5.0), torch.full((8,), 3.0)])
    loss = LossBalance(LossConfig(balance="constant"))(mine, reduce=lambda x: x + other, workers=2)
    assert float(loss.existence) == 6 / 4
    # What is logged is the loss of all workers. Before, it was N times the first one's share: 2 x 16 / 4.
    assert float(loss.value) == (5 + 1 + 1 + 1 + 2 * 4) * 6 / 4
    (gradient,) = torch.autograd.grad(loss.total, mine.sums)
    torch.testing.assert_close(gradient, torch.tensor([5.0, 1, 1, 1, 2, 2, 2, 2]) * 2 / 4)


VARIANTS: dict[str, dict[str, Any]] = {
    "text": {"inputs": "text", "grounding": False},
    "without grounding": {"grounding": False},
    "grounding alone": {"inputs": "picture"},
    "bio": {"tagger": "bio", "inputs": "text", "grounding": False},
    "crf": {"tagger": "crf", "inputs": "text", "grounding": False},
}
ANSWERED = {  # terms with a count
    "text": {"existence", "start", "end", "match"},
    "without grounding": {"existence", "start", "end", "match"},
    "grounding alone": {"box", "object_positive", "object_negative"},
    "bio": {"words"},
    "crf": {"words"},
}


@pytest.mark.parametrize("name", VARIANTS)
def test_a_variant_learns_with_all_it_has_and_only_what_it_answers(name: str) -> None:
    config = small_config(**VARIANTS[name])
    network = small_network(config)
    batch = build_collator(config, text_encoder())(annotated_examples(), with_targets=True)
    terms = loss_terms(network(batch), batch, LossConfig())
    assert {term for term, count in zip(TERMS, terms.counts.tolist(), strict=True) if count} == ANSWERED[name]
    LossBalance(LossConfig(balance="constant"))(terms).total.backward()
    for key, parameter in network.named_parameters():
        assert parameter.grad is not None, key
        assert parameter.grad.isfinite().all(), key


# What nothing but the loss looks at. The existence state itself goes into the spans.
ONLY_FOR = {
    "grounding_weight": ("grounding.",),
    "existence_weight": (
        "spans.existence.",
        "spans.existence_aware.existence_attention.",
        "spans.existence_aware.existence_norm.",
    ),
}


@pytest.mark.parametrize("taken_away", [("grounding_weight",), ("existence_weight",), tuple(ONLY_FOR)])
def test_a_loss_that_is_taken_away_takes_its_lesson_and_nothing_else(taken_away: tuple[str, ...]) -> None:
    """w/o QG loss, w/o ED loss and w/o both: the modules are there, and what only serves the loss stays as it is."""
    untaught = tuple(name for weight in taken_away for name in ONLY_FOR[weight])
    full, left = taught_parts(), taught_parts(**dict.fromkeys(taken_away, 0.0))
    assert any(key.startswith(untaught) for key in full)
    assert left == {key for key in full if not key.startswith(untaught)}


def taught_parts(**weights: float) -> set[str]:
    """The parameters with a gradient other than 0."""
    config = small_config()
    network = small_model(config)
    batch = build_collator(config, text_encoder())(annotated_examples(), with_targets=True)
    terms = loss_terms(network(batch), batch, LossConfig())
    LossBalance(LossConfig(balance="constant", **weights))(terms).total.backward()
    gradients = {key: parameter.grad for key, parameter in network.named_parameters()}
    # One that is None would be waited for by data-parallel workers.
    assert not [key for key, gradient in gradients.items() if gradient is None]
    return {key for key, gradient in gradients.items() if gradient is not None and gradient.any()}


def test_phrases_teach_where_and_nothing_else() -> None:
    """A post with phrases of its own beside an ordinary one: its padding and the missing text teach nothing."""
    config = small_config()
    asked = example(
        phrases=tuple(text_encoder().encode_query(phrase) for phrase in ("a man", "an orange hat")),
        phrase_ids=("1", "2"),
        boxes_canvas=[[4, 5, 30, 60]],
        box_types=(1,),
        boxes_annotated=True,
    )
    batch = build_collator(config, text_encoder())([asked, annotated_examples()[0]], with_targets=True)
    targets = batch.targets
    assert targets is not None
    assert targets.existence.tolist() == [[-100] * 4, [1, 1, 0, 0]]
    assert not batch.begins_word[0].any()
    assert (targets.objectness[0, 2:] == -1).all()
    assert (targets.objectness[0, 0] == 0).all()
    assert int((targets.objectness[0, 1] == 1).sum()) == 1
    terms = loss_terms(small_model()(batch), batch, LossConfig())
    assert terms.counts[TERMS.index("existence")] == 4
    assert terms.sums.isfinite().all()


def test_start_and_end_as_means_over_queries() -> None:
    """The same sums, over the queries of posts that have words: they weigh as much in a long text as in a short one."""
    output, batch, _ = case()
    by_word = loss_terms(output, batch, LossConfig())
    by_query = loss_terms(output, batch, LossConfig(span_mean="queries"))
    torch.testing.assert_close(by_query.sums, by_word.sums)
    asked = int(batch.begins_word.any(-1).sum())
    for index, term in enumerate(TERMS):
        expected = asked if term in ("start", "end") else int(by_word.counts[index])
        assert int(by_query.counts[index]) == expected, term


def test_what_is_there_can_weigh_more_in_the_span_losses() -> None:
    """With twice the weight their own loss is there once more, and nothing else."""
    output, batch, targets = case()
    once, twice = (loss_terms(output, batch, LossConfig(positive_weight=weight)) for weight in (1.0, 2.0))
    torch.testing.assert_close(twice.counts, once.counts)
    more = dict(zip(TERMS, (twice.sums - once.sums).tolist(), strict=True))
    assert {term for term, added in more.items() if added} == {"start", "end", "match"}
    for term, labels, counted, logits in (
        ("start", targets.starts, batch.begins_word, output.spans.start_logits),
        ("end", targets.ends, batch.ends_word, output.spans.end_logits),
    ):
        there = logits[labels.bool() & counted]
        assert more[term] == pytest.approx(sum(cross_entropy(one, 1) for one in there), rel=1e-4)
    gold = output.spans.match.at(targets.pairs[targets.matches == 1]).tolist()
    assert more["match"] == pytest.approx(sum(math.log1p(math.exp(-logit)) for logit in gold), rel=1e-4)


def test_unlikely_pairs_are_candidates_where_that_is_asked() -> None:
    output, batch, targets = case()
    at = TERMS.index("match")
    counts = [
        int(loss_terms(output, batch, LossConfig(match_candidates=threshold)).counts[at])
        for threshold in (1.0, 0.5, 0.05)
    ]
    assert counts[0] == int((targets.matches >= 0).sum())  # of the gold starts and ends alone
    assert counts[0] <= counts[1] < counts[2]


def test_the_match_has_a_weight_of_its_own() -> None:
    output, batch, _ = case()
    terms = loss_terms(output, batch, LossConfig())
    means = terms.sums / terms.counts.clamp(min=1)
    match = float(means[TERMS.index("match")].detach())
    full = LossBalance(LossConfig(balance="constant"))(terms)
    tenth = LossBalance(LossConfig(balance="constant", match_weight=0.1))(terms)
    assert match > 0
    assert float(full.spans - tenth.spans) == pytest.approx(0.9 * match, rel=1e-4)
