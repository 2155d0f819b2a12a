from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torchcrf import CRF

from mnerqg.model.words import WordLogits, label_runs, pack_words


def test_words_are_packed_to_the_left() -> None:
    values = torch.arange(10.0).reshape(2, 5)
    begins = torch.tensor([[False, True, False, True, False], [False] * 5])
    packed, mask = pack_words(values, begins)
    assert mask.tolist() == [[True, True], [False, False]]
    assert packed[0].tolist() == [1, 3]
    assert pack_words(values, torch.zeros_like(begins))[0].shape == (2, 1)


def slow_score(crf: CRF, logits: torch.Tensor, labels: list[int]) -> float:
    """The score of a path by its definition."""
    score = crf.start_transitions[labels[0]] + crf.end_transitions[labels[-1]]
    score = score + sum(logits[word, label] for word, label in enumerate(labels))
    score = score + sum(crf.transitions[a, b] for a, b in pairwise(labels))
    return float(score.detach())


def test_the_crf_is_its_definition() -> None:
    """Likelihood and best path over all paths of three words; a post without a word costs nothing."""
    torch.manual_seed(1)
    size = 9
    crf = CRF(size, batch_first=True)
    logits = torch.randn(2, 5, size)
    begins = torch.tensor([[False, True, True, False, True], [False] * 5])
    words = logits[0, [1, 2, 4]]
    paths = [[a, b, c] for a in range(size) for b in range(size) for c in range(size)]
    scores = torch.tensor([slow_score(crf, words, path) for path in paths])
    gold = [1, 2, 0]
    labels = torch.zeros(2, 5, dtype=torch.long)
    labels[0, [1, 2, 4]] = torch.tensor(gold)
    total, count = WordLogits(logits, crf).loss(labels, begins)
    assert count == 3
    expected = scores.logsumexp(0) - slow_score(crf, words, gold)
    assert float(total.detach()) == pytest.approx(float(expected), rel=1e-4)
    assert WordLogits(logits, crf).best(begins) == [paths[int(scores.argmax())], []]


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(1, 3), st.integers(0, 2)), max_size=6))
def test_runs_are_the_entities_that_labels_spell(entities: list[tuple[int, int, int]]) -> None:
    """(type, words, words outside behind it) -> labels -> the same entities."""
    labels: list[int] = []
    expected = []
    for kind, words, behind in entities:
        expected.append((len(labels), len(labels) + words - 1, kind))
        labels += [1 + 2 * kind, *[2 + 2 * kind] * (words - 1), *[0] * behind]
    assert label_runs(labels) == expected


@pytest.mark.parametrize(
    ("labels", "runs"),
    [([2, 2], [(0, 1, 0)]), ([0, 4, 2], [(1, 1, 1), (2, 2, 0)]), ([1, 4], [(0, 0, 0), (1, 1, 1)]), ([], [])],
)
def test_a_stray_inside_begins_an_entity(labels: list[int], runs: list[tuple[int, int, int]]) -> None:
    assert label_runs(labels) == runs
