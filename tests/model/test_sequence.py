from itertools import pairwise

import pytest
import torch

from mnerqg.model.build import build_collator
from mnerqg.model.sequence import SequenceTagger, pack_words
from tests.builders import annotated_examples, example, small_config, small_network, text_encoder


def network(tagger: str) -> SequenceTagger:
    config = small_config(tagger=tagger, inputs="text", grounding=False)
    built = small_network(config)
    assert isinstance(built, SequenceTagger)
    return built.eval()


def test_words_are_packed_to_the_left() -> None:
    values = torch.arange(10.0).reshape(2, 5)
    begins = torch.tensor([[False, True, False, True, False], [False] * 5])
    packed, mask = pack_words(values, begins)
    assert mask.tolist() == [[True, True], [False, False]]
    assert packed[0].tolist() == [1, 3]
    assert pack_words(values, torch.zeros_like(begins))[0].shape == (2, 1)


def slow_crf(tagger: SequenceTagger, logits: torch.Tensor, tags: list[int]) -> float:
    """The score of a path by its definition."""
    crf = tagger.crf
    assert crf is not None
    score = crf.start_transitions[tags[0]] + crf.end_transitions[tags[-1]]
    score = score + sum(logits[word, tag] for word, tag in enumerate(tags))
    score = score + sum(crf.transitions[a, b] for a, b in pairwise(tags))
    return float(score.detach())


def test_the_crf_is_its_definition() -> None:
    """Likelihood and best path over all paths of three words; a post without a word costs nothing."""
    tagger = network("crf")
    torch.manual_seed(1)
    size = tagger.project.out_features
    logits = torch.randn(2, 5, size)
    begins = torch.tensor([[False, True, True, False, True], [False] * 5])
    words = logits[0, [1, 2, 4]]
    paths = [[a, b, c] for a in range(size) for b in range(size) for c in range(size)]
    scores = torch.tensor([slow_crf(tagger, words, path) for path in paths])
    gold = [1, 2, 0]
    tags = torch.zeros(2, 5, dtype=torch.long)
    tags[0, [1, 2, 4]] = torch.tensor(gold)
    total, count = tagger.loss(logits, tags, begins)
    assert count == 3
    expected = scores.logsumexp(0) - slow_crf(tagger, words, gold)
    assert float(total.detach()) == pytest.approx(float(expected), rel=1e-4)
    assert tagger.best_tags(logits, begins) == [paths[int(scores.argmax())], []]


@pytest.mark.parametrize("tagger", ["bio", "crf"])
def test_a_baseline_learns_its_words(tagger: str) -> None:
    config = small_config(tagger=tagger, inputs="text", grounding=False)
    built = network(tagger).train()
    batch = build_collator(config, text_encoder())(annotated_examples(), with_targets=True)
    assert batch.targets is not None
    assert batch.targets.tags is not None
    begins = batch.begins_word[:, 0]
    optimizer = torch.optim.AdamW(built.parameters(), 5e-3)
    for _ in range(60):
        total, count = built.loss(built(batch).tag_logits, batch.targets.tags, begins)
        optimizer.zero_grad()
        (total / count).backward()
        optimizer.step()
    found = built.eval().best_tags(built(batch).tag_logits, begins)
    gold = [tags[mask].tolist() for tags, mask in zip(batch.targets.tags, begins, strict=True)]
    assert found == gold


@pytest.mark.parametrize("tagger", ["bio", "crf"])
def test_no_words_at_all(tagger: str) -> None:
    config = small_config(tagger=tagger, inputs="text", grounding=False)
    built = network(tagger)
    batch = build_collator(config, text_encoder())([example("", picture=None)], with_targets=True)
    assert batch.targets is not None
    assert batch.targets.tags is not None
    logits = built(batch).tag_logits
    assert built.best_tags(logits, batch.begins_word[:, 0]) == [[]]
    total, count = built.loss(logits, batch.targets.tags, batch.begins_word[:, 0])
    assert (float(total.detach()), count) == (0, 0)
    total.backward()  # other workers of the step have words, and wait for every parameter
    assert all(parameter.grad is not None for parameter in built.parameters())
