import pytest
import torch

from mnerqg.config import Config
from mnerqg.inputs.batch import Batch
from mnerqg.inputs.examples import Example
from mnerqg.model.build import build_collator
from mnerqg.model.output import Output
from mnerqg.model.sequence import SequenceLabeller
from mnerqg.model.words import WordLogits
from tests.builders import annotated_examples, example, small_config, small_network, text_encoder


def baseline(tagger: str) -> tuple[Config, SequenceLabeller]:
    config = small_config(tagger=tagger, inputs="text", grounding=False)
    built = small_network(config)
    assert isinstance(built, SequenceLabeller)
    return config, built


def batch_of(config: Config, examples: list[Example]) -> tuple[Batch, torch.Tensor, torch.Tensor]:
    """A batch, its labels, and where its words begin."""
    batch = build_collator(config, text_encoder())(examples, with_targets=True)
    assert batch.targets is not None
    return batch, batch.targets.labels, batch.begins_word[:, 0]


def words(output: Output) -> WordLogits:
    assert output.words is not None
    assert (output.spans, output.box_logits) == (None, None)
    return output.words


@pytest.mark.parametrize("tagger", ["bio", "crf"])
def test_a_baseline_learns_its_words(tagger: str) -> None:
    config, built = baseline(tagger)
    batch, labels, begins = batch_of(config, annotated_examples())
    optimizer = torch.optim.AdamW(built.parameters(), 5e-3)
    for _ in range(60):
        total, count = words(built(batch)).loss(labels, begins)
        optimizer.zero_grad()
        (total / count).backward()
        optimizer.step()
    found = words(built.eval()(batch)).best(begins)
    assert found == [row[mask].tolist() for row, mask in zip(labels, begins, strict=True)]


@pytest.mark.parametrize("tagger", ["bio", "crf"])
def test_no_words_at_all(tagger: str) -> None:
    config, built = baseline(tagger)
    batch, labels, begins = batch_of(config, [example("", picture=None)])
    logits = words(built(batch))
    assert logits.best(begins) == [[]]
    total, count = logits.loss(labels, begins)
    assert (float(total.detach()), count) == (0, 0)
    total.backward()  # other workers of the step have words, and wait for every parameter
    assert all(parameter.grad is not None for parameter in built.parameters())
