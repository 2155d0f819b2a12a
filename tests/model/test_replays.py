"""Batches of few shapes find what others find, and a GPU that replays what it did for one of a shape does, too."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from mnerqg.config import Config
from mnerqg.inputs.batch import Batch
from mnerqg.inputs.examples import Example
from mnerqg.inputs.sentences import Sentences, Shown
from mnerqg.model.answers import Reduced
from mnerqg.model.build import Network, build_collator
from mnerqg.model.finder import Finder
from mnerqg.model.found import Found
from mnerqg.model.inference import ready_to_answer
from mnerqg.model.replays import Replays
from tests.builders import SIDE, example, small_config, text_encoder
from tests.model.test_inference import VARIANTS, trained

GPU = pytest.param("cuda", marks=pytest.mark.gpu)

POSTS = {
    "each with a picture": [example(f"Ada visits {place}", picture=place) for place in range(9)],
    "some with one": [example("word " * n, picture=n if n % 3 else None) for n in range(1, 8)],
    "none with one": [example("Ada in London", picture=None), example("", picture=None)],
    "one post": [example("Ada")],
}


def asked(finder: Finder, posts: list[Example], pictures: list[int] | None = None) -> Found:
    """What is found in posts, of which several may have the same picture."""
    canvases = [one.pixels for one in posts]
    shown = Shown.of(canvases if pictures is None else [canvases[one] for one in pictures])
    sentences = Sentences.of([one.text for one in posts])
    return finder.answer(finder.collate(sentences, shown), sentences)


def assert_alike(one: Found, other: Found, near: float) -> None:
    np.testing.assert_array_equal(one.spans, other.spans)
    np.testing.assert_array_equal(one.boxes, other.boxes)
    np.testing.assert_allclose(one.existence, other.existence, atol=near)
    np.testing.assert_allclose(one.box_scores, other.box_scores, atol=near)
    if near < 1e-3:  # else of two boxes that are as confident either may be the first
        np.testing.assert_allclose(one.boxes_canvas, other.boxes_canvas, atol=SIDE * near)


def finder_on(network: Network, config: Config, device: str) -> Finder:
    ready = ready_to_answer(network, device=torch.device(device))
    return Finder(ready, text_encoder=text_encoder(), config=config, device=torch.device(device))


@pytest.mark.parametrize("name", [name for name in VARIANTS if name != "crf"])
@pytest.mark.parametrize("device", ["cpu", GPU])
def test_batches_of_few_shapes_find_what_others_find(name: str, device: str) -> None:
    """On a GPU each shape three times: computed, recorded and replayed, with other posts in between."""
    config = small_config(**VARIANTS[name])
    network = trained(config)
    plain, even = finder_on(network, config, "cpu"), finder_on(network, config, device)
    if device == "cpu":
        even.collate = build_collator(config, text_encoder(), groups=False, even=True).of_sentences  # type: ignore[method-assign]
    for _ in range(3):
        for posts in POSTS.values():
            assert_alike(asked(even, posts), asked(plain, posts), 1e-5 if device == "cpu" else 1e-2)
        windows = [0, 0, 0, 1, 2, 2, 4]
        shared = asked(even, POSTS["each with a picture"][:7], windows)
        assert_alike(
            shared,
            asked(plain, POSTS["each with a picture"][:7], windows),
            1e-5 if device == "cpu" else 1e-2,
        )


@pytest.mark.parametrize("device", ["cpu", GPU])
def test_a_batch_with_more_pairs_than_there_is_room_for_is_asked_again(
    device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = small_config(**VARIANTS["aligned"])
    network = trained(config)
    posts = POSTS["some with one"]
    expected = asked(finder_on(network, config, "cpu"), posts)
    assert len(expected.spans) > len(posts)
    monkeypatch.setattr("mnerqg.model.finder._PAIRS", 1)
    tight = finder_on(network, config, device)
    for _ in range(3):
        assert_alike(asked(tight, posts), expected, 1e-5 if device == "cpu" else 1e-2)


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["the paper's", "aligned"])
def test_all_that_a_network_answers_is_one_recording(name: str) -> None:
    config = small_config(**VARIANTS[name])
    finder = finder_on(trained(config), config, "cuda")
    for _ in range(2):
        asked(finder, POSTS["each with a picture"])
    (recording,) = finder._gpu._replays._recordings.values()  # type: ignore[union-attr]
    assert isinstance(recording.answer, Reduced)


@pytest.mark.gpu
def test_a_network_that_asks_the_device_is_not_recorded_and_answers_all_the_same() -> None:
    config = small_config(inputs="text", grounding=False)
    network = trained(config)
    finder = finder_on(network, config, "cuda")
    expected = asked(finder, POSTS["one post"])
    sums: list[float] = []
    finder.network.register_forward_pre_hook(lambda _, given: sums.append(given[0].sequence.sum().item()))
    for _ in range(3):
        assert_alike(asked(finder, POSTS["one post"]), expected, 1e-2)
    assert len(sums) >= 3


class Recorded(Replays[int]):
    """Records without a GPU: what was computed for the first batch of a shape is its answer from then on."""

    def _recorded(self, shape: Any, batch: Batch, *others: Any) -> Any:
        answer = self._compute(batch, *others)
        self._recordings[shape] = SimpleNamespace(
            batch=batch, graph=SimpleNamespace(replay=lambda: None), answer=answer
        )
        return self._recordings[shape]


def test_a_shape_is_recorded_when_it_comes_again_and_forgotten_when_that_is_asked(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    collate = build_collator(small_config(), text_encoder())
    one, other, third = (collate([example("Ada")] * posts, with_targets=False) for posts in (1, 2, 3))
    computed: list[int] = []

    def compute(batch: Batch, more: int = 0) -> int:
        computed.append(len(batch.attention_mask) + more)
        return computed[-1]

    monkeypatch.setattr("mnerqg.model.replays._MOST", 2)
    replays = Recorded(compute)
    assert [replays(batch) for batch in (one, other, one, one, other, other)] == [1, 2, 1, 1, 2, 2]
    assert computed == [1, 2, 1, 2]  # and once more to record each
    assert [replays(third) for _ in range(3)] == [3, 3, 3]
    assert computed[4:] == [3, 3, 3]  # there are two recordings
    replays.forget()
    assert [replays(one) for _ in range(3)] == [1, 1, 1]
    assert computed[7:] == [1, 1]
    assert [replays(one, 10) for _ in range(3)] == [11, 11, 11]
    assert computed[9:] == [11, 11]
    never = Recorded(compute, records=False)
    assert [never(one) for _ in range(3)] == [1, 1, 1]
    assert computed[11:] == [1, 1, 1]


@pytest.mark.parametrize("query_alone", [False, True])
def test_even_batches_have_few_shapes(query_alone: bool) -> None:
    collate = build_collator(small_config(query_alone=query_alone), text_encoder(), groups=False, even=True)

    def shape(posts: int, pictures: int) -> tuple[int, int, int, int]:
        sentences = Sentences.of([example("Ada").text] * posts)
        canvases = [example(picture=number).pixels if number < pictures else None for number in range(posts)]
        batch = collate.of_sentences(sentences, Shown.of(canvases))
        return len(batch.attention_mask), len(batch.texts), len(batch.pixels), len(batch.shown)

    assert shape(5, 5) == shape(8, 8) == shape(8, 7) == (8, 2, 8, 8)
    assert shape(8, 3) == shape(7, 4) == (8, 2, 4, 4)
    assert shape(9, 0) == (16, 2, 0, 0)
    assert shape(40, 17) == shape(64, 32) == (64, 2, 32, 32)
    # Windows that share pictures: there stay fewer pictures than posts that show one.
    canvases = [example(picture=number).pixels for number in range(3)]
    shared = Shown.of([canvases[number % 3] for number in range(16)])
    batch = collate.of_sentences(Sentences.of([example("Ada").text] * 16), shared)
    assert (len(batch.pixels), len(batch.shown)) == (4, 16)
