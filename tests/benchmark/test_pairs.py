from typing import Any

import pytest
import torch

from mnerqg.benchmark.pairs import as_pairs
from mnerqg.model.losses import loss_terms
from tests.builders import annotated_examples, collator, small_config, small_network

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize(
    "model", [{}, {"query_alone": True}, {"inputs": "text", "grounding": False}, {"inputs": "picture"}]
)
def test_pairs_answer_as_posts_do(model: dict[str, Any]) -> None:
    """Query by query, with a picture each: the same logits, and the same losses, as of the dense layout."""
    config = small_config(**model)
    network = small_network(config).eval()
    batch = collator(query_alone=config.model.query_alone)(annotated_examples(), with_targets=True)
    pairs = as_pairs(batch)
    assert len(pairs.texts) == 1 + config.model.query_alone
    assert pairs.sequence.shape == (16, 1)
    assert len(pairs.pixels) == 4 * len(batch.pixels)
    with torch.no_grad():
        dense, alone = network(batch), network(pairs)
    if dense.spans is not None:
        for name in ("existence_logits", "start_logits", "end_logits"):
            expected, found = getattr(dense.spans, name), getattr(alone.spans, name)
            seen = torch.ones_like(expected, dtype=torch.bool)
            if name != "existence_logits":
                seen = batch.attention_mask[..., None].expand_as(expected)
            torch.testing.assert_close(
                found.reshape(expected.shape)[seen], expected[seen], rtol=1e-4, atol=1e-4
            )
    if dense.box_logits is not None:
        found = alone.box_logits.reshape(dense.box_logits.shape)
        torch.testing.assert_close(found, dense.box_logits, rtol=1e-3, atol=1e-3)
    expected, found = (
        loss_terms(output, one, config.loss) for output, one in ((dense, batch), (alone, pairs))
    )
    torch.testing.assert_close(found.counts, expected.counts)
    torch.testing.assert_close(found.sums, expected.sums, rtol=1e-3, atol=1e-3)


def test_a_batch_without_a_picture() -> None:
    batch = collator()(annotated_examples()[3:], with_targets=False)
    pairs = as_pairs(batch)
    assert (len(pairs.pixels), len(pairs.shown), pairs.targets) == (0, 0, None)
