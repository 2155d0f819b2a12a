from dataclasses import replace

import pytest
import torch

from mnerqg.inputs.batch import Batch
from mnerqg.inputs.collate import Collator
from mnerqg.inputs.examples import Example
from mnerqg.model.mnerqg import MNERQG
from mnerqg.model.output import Output
from tests.builders import (
    QUERIES,
    anchors,
    annotated_examples,
    collator,
    example,
    small_config,
    small_model,
    text_encoder,
)


@pytest.fixture(scope="module")
def model() -> MNERQG:
    """Weights of some size everywhere, so that a wrong wiring shows."""
    built = small_model().eval()
    with torch.no_grad():
        for name, parameter in built.named_parameters():
            if name.startswith(
                ("spans.start", "spans.end", "spans.match", "spans.existence.", "grounding.head.outputs")
            ):
                parameter.normal_(std=0.5)
    return built


def run(model: MNERQG, batch: Batch) -> Output:
    with torch.inference_mode():
        return model(batch)


def close(one: torch.Tensor, other: torch.Tensor) -> None:
    torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)


def piece_logits(output: Output) -> tuple[torch.Tensor, ...]:
    """What is said of each piece, [P, K, L, ...]."""
    spans = output.spans
    return spans.start_logits, spans.end_logits, spans.match.start_share, spans.match.end_share


def examples() -> list[Example]:
    return [
        example("Ada Lovelace visits London", picture=0),
        example("x", picture=None),
        example("a much longer sentence about the BBC and all of its many stations in Wales", picture=1),
    ]


def test_four_queries_at_once_are_four_runs_of_one(model: MNERQG) -> None:
    batch = collator()(examples(), with_targets=False)
    together = run(model, batch)
    assert together.spans.existence_logits.shape == (3, 4, 2)
    assert together.box_logits.shape == (3, 4, anchors().candidates, 5)
    for k, query in enumerate(QUERIES):
        alone_batch = collator((query,))(examples(), with_targets=False)
        alone = run(model, alone_batch)
        close(alone.spans.existence_logits[:, 0], together.spans.existence_logits[:, k])
        close(alone.box_logits[:, 0], together.box_logits[:, k])
        for p in range(3):
            real = int(alone_batch.attention_mask[p, 0].sum())
            assert real == int(batch.attention_mask[p, k].sum())
            for one, all_of_them in zip(piece_logits(alone), piece_logits(together), strict=True):
                close(one[p, 0, :real], all_of_them[p, k, :real])


def test_each_post_alone_is_the_same_as_in_the_batch(model: MNERQG) -> None:
    """Neither padding nor the neighbours matter."""
    batch = collator()(examples(), with_targets=False)
    together = run(model, batch)
    for p, one in enumerate(examples()):
        alone = run(model, collator()([one], with_targets=False))
        close(alone.spans.existence_logits[0], together.spans.existence_logits[p])
        close(alone.box_logits[0], together.box_logits[p])
        for k in range(4):
            real = int(batch.attention_mask[p, k].sum())
            close(alone.spans.start_logits[0, k, :real], together.spans.start_logits[p, k, :real])


def test_the_content_of_padding_does_not_matter(model: MNERQG) -> None:
    batch = collator()(examples(), with_targets=False)
    texts = tuple(
        replace(some, input_ids=some.input_ids.masked_fill(~some.attention_mask, 1234))
        for some in batch.texts
    )
    one, other = run(model, batch), run(model, replace(batch, texts=texts))
    close(one.spans.existence_logits, other.spans.existence_logits)
    close(one.box_logits, other.box_logits)
    close(one.spans.start_logits[batch.attention_mask], other.spans.start_logits[batch.attention_mask])


def test_a_picture_is_encoded_once(model: MNERQG) -> None:
    seen: list[tuple[int, ...]] = []
    hook = model.visual.register_forward_pre_hook(lambda _, arguments: seen.append(arguments[0].shape))
    run(model, collator()(examples(), with_targets=False))
    hook.remove()
    assert [shape[0] for shape in seen] == [2]


def test_the_picture_matters_and_only_where_it_is(model: MNERQG) -> None:
    one = run(model, collator()(examples(), with_targets=False))
    changed = [example("Ada Lovelace visits London", picture=7), *examples()[1:]]
    other = run(model, collator()(changed, with_targets=False))
    assert not torch.allclose(one.spans.start_logits[0], other.spans.start_logits[0])
    assert not torch.allclose(one.box_logits[0], other.box_logits[0])
    close(one.spans.start_logits[1:], other.spans.start_logits[1:])
    close(one.box_logits[1:], other.box_logits[1:])
    assert (one.box_logits[1] == 0).all()


def test_targets_are_not_looked_at(model: MNERQG) -> None:
    batch = collator()(annotated_examples(), with_targets=True)
    close(run(model, batch).spans.start_logits, run(model, replace(batch, targets=None)).spans.start_logits)


@pytest.mark.parametrize("training", [True, False])
def test_a_batch_without_any_picture(training: bool) -> None:
    model = small_model().train(training)
    output = model(collator()([example(picture=None), example("", picture=None)], with_targets=False))
    assert (output.box_logits == 0).all()
    assert output.spans.start_logits.isfinite().all()


@pytest.mark.parametrize("hidden", [None, 6])
def test_the_match_shares_have_the_heads_width(hidden: int | None) -> None:
    model = small_model(small_config(match_hidden=hidden)).eval()
    output = run(model, collator()([example()], with_targets=False))
    assert output.spans.match.start_share.shape[-1] == output.spans.match.end_share.shape[-1] == (hidden or 1)


def test_a_larger_canvas(model: MNERQG) -> None:
    collate = Collator(text_encoder=text_encoder(), anchors=anchors(96), ignore_iou=0.5)
    output = run(model, collate([example(picture=None)], with_targets=False))
    assert output.box_logits.shape[2] == anchors(96).candidates


def existence_of(model: MNERQG, examples: list[Example]) -> torch.Tensor:
    spans = run(model, collator()(examples, with_targets=False)).spans
    assert spans is not None
    return spans.existence_logits


@pytest.mark.parametrize("told", [True, False])
def test_the_existence_is_told_how_sure_the_grounding_is(told: bool) -> None:
    """Without it, with the cross-modality at its start from the text alone, no picture changes what is said."""
    model = small_model(small_config(region_existence=told)).eval()
    torch.nn.init.normal_(model.spans.existence.project.weight)
    if told:  # zero at the start, when the text alone is listened to
        torch.nn.init.normal_(model.spans.told)
    torch.nn.init.zeros_(model.cross_modality.feed_forward[-1].weight)
    one, other, none = (
        existence_of(model, [example("Ada visits London", picture=picture)]) for picture in (0, 1, None)
    )
    assert torch.equal(one, other) is not told
    assert torch.equal(one, none) is not told
    # The confidences learn from boxes alone: a name may be one that the picture does not show.
    model(collator()([example("Ada")], with_targets=False)).spans.existence_logits[..., 0].sum().backward()
    assert all(part.grad is None for part in model.grounding.parameters())


@pytest.mark.parametrize("alone", [True, False])
def test_where_boxes_are_asked_for_by_a_query_that_was_read_alone(model: MNERQG, alone: bool) -> None:
    """It does not know the sentence; what answers with spans knows it either way."""
    ada, paris = (
        run(model, collator(query_alone=alone)([example(text)], with_targets=False))
        for text in ("Ada visits London", "nothing of the kind in Paris this year")
    )
    assert torch.allclose(ada.box_logits, paris.box_logits, atol=1e-5) is alone
    assert not torch.allclose(ada.spans.existence_logits, paris.spans.existence_logits, atol=1e-5)


@pytest.mark.parametrize("share", [0.0, 0.1, 1.0])
def test_the_share_of_the_groundings_gradient_that_the_text_gets(share: float) -> None:
    batch = collator()(examples(), with_targets=False)
    norms = []
    for query_gradient in (share, 1.0):
        model = small_model(small_config(query_gradient=query_gradient))
        model.eval()(batch).box_logits.square().sum().backward()
        gradient = model.text.project.weight.grad
        norms.append(0.0 if gradient is None else float(gradient.norm()))
    assert norms[1] > 0
    assert norms[0] == pytest.approx(share * norms[1], rel=1e-4)


def test_a_single_query_is_mapped_as_it_was_in_training() -> None:
    """Before, q was 0 in training, for the only query of a batch is its own mean, and 700 in use: its stored variance
    was that of nothing."""
    model = small_model(small_config(query_alone=True, query_map=True, dropout=0.3)).train()
    assert model.grounding is not None
    assert model.grounding.query_map is not None
    mapped: list[torch.Tensor] = []
    model.grounding.query_map[-1].register_forward_hook(
        lambda _module, _given, q: mapped.append(q.abs().max())
    )
    batch = collator(QUERIES[:1], query_alone=True)([example(), example("Bob")], with_targets=False)
    for _ in range(100):
        run(model, batch)
    learned = float(mapped[-1])
    run(model.eval(), batch)
    assert 0.3 * learned < mapped[-1] < 3 * learned


def test_a_mapped_query_is_still_a_query_of_each_post() -> None:
    model = small_model(small_config(query_map=True)).eval()
    batch = collator()(examples(), with_targets=False)
    boxes = run(model, batch).box_logits
    alone = run(model, collator()(examples()[:1], with_targets=False)).box_logits
    close(boxes[:1], alone)
