"""Scores of the small model, whose thresholds let its random weights say much."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mnerqg.config import DecodeConfig
from mnerqg.schema import Box, Post, Span
from mnerqg.scoring.metrics import Counts
from mnerqg.scoring.score import answered, score, score_each, with_pictures
from mnerqg.tagger import Tagger
from tests.builders import TYPES, photo


def test_no_posts(talkative: Tagger) -> None:
    assert score(talkative, []) == Counts(TYPES)
    assert list(answered(talkative, [], [talkative.config.decode] * 2)) == []


@pytest.mark.parametrize("batch_size", [1, 4, 16])
def test_every_post_is_scored_once(talkative: Tagger, batch_size: int) -> None:
    posts = [
        Post(str(number), "Ada in Oslo", photo() if number % 2 else None, (Span(0, 3, "PER"),),
             (Box("PER", 0, 0, 40, 40),), boxes_annotated=True)
        for number in range(9)
    ]  # fmt: skip
    scores = score(talkative, iter(posts), batch_size=batch_size).scores()
    assert (scores["posts"], scores["entities"], scores["grounded_queries"]) == (9, 9, 9)


@pytest.mark.parametrize("regions", ["one", "several"])
def test_answers_at_several_thresholds(talkative: Tagger, regions: str) -> None:
    """As those of so many models that have one of the thresholds each; a region where there is no box is wrong."""
    own = talkative.config.decode.model_copy(update={"regions": regions})

    def at(decode: DecodeConfig) -> Tagger:
        return Tagger(
            model=talkative.model,
            text_encoder=talkative.text_encoder,
            config=talkative.config.model_copy(update={"decode": decode}),
            model_id=talkative.model_id,
        )

    (tagged,) = talkative.tag([Post("x", "Ada in Oslo", photo())])
    gold = tuple(Span(entity.start, entity.end, entity.type) for entity in tagged.entities)
    posts = [Post(str(number), "Ada in Oslo", photo(), gold, boxes_annotated=True) for number in range(3)]
    lowest = own.model_copy(update={"region_threshold": 0.001})
    decodes = [lowest.at(threshold) for threshold in (0.005, 0.012, 0.9)]
    both = list(answered(at(lowest), posts, decodes, batch_size=2))
    assert [post for post, _ in both] == posts
    found = {}
    for place, threshold in itertools.product(range(3), (0.001, own.region_threshold, 1.0)):
        counts = found[place, threshold] = Counts(TYPES)
        for post, answers in both:
            kept = [region for region in answers[place].regions if region.score >= threshold]
            counts.add_post(post, answers[place].entities, answers[place].best_regions, kept)
        decode = decodes[place].model_copy(update={"region_threshold": threshold})
        assert counts == score(at(decode), posts)
    assert found[0, 0.001] != found[2, 0.001]
    assert found[0, 0.001] != found[0, 1.0]


def test_scores_agree_with_tags(talkative: Tagger) -> None:
    post = Post("1", "Ada in Oslo", photo())
    (tagged,) = talkative.tag([post])
    assert tagged.entities
    gold = tuple(Span(entity.start, entity.end, entity.type) for entity in tagged.entities)
    assert score(talkative, [Post("1", "Ada in Oslo", photo(), gold)]).scores()["f1"] == 1


def test_the_scores_of_each_post_add_up(talkative: Tagger) -> None:
    posts = [
        Post(str(number), "Ada in Oslo", photo(), (Span(0, 3, "PER"),) * (number % 2)) for number in range(3)
    ]
    each = score_each(talkative, posts)
    assert [counts.posts for counts in each] == [1, 1, 1]
    assert sum(each, Counts(TYPES)) == score(talkative, posts)


def test_pictures_of_other_posts() -> None:
    """Whatever comes between, before and behind those with a picture; order and texts stay."""
    shown = {"b": b"B", "d": b"D", "e": b"E"}
    posts = [
        Post(
            name,
            name.upper(),
            shown.get(name),
            (),
            (Box("PER", 0, 0, ord(name), 1),) if name in shown else (),
        )
        for name in "abcdef"
    ]
    assert list(with_pictures(iter(posts), "true")) == posts
    bare = list(with_pictures(iter(posts), "none"))
    assert [(post.post_id, post.text, post.image, post.boxes) for post in bare] == [
        (name, name.upper(), None, ()) for name in "abcdef"
    ]
    others = list(with_pictures(iter(posts), "shuffled"))
    assert [(post.post_id, post.text) for post in others] == [(name, name.upper()) for name in "abcdef"]
    assert [post.image for post in others] == [None, b"D", None, b"E", b"B", None]
    assert [post.boxes for post in others] == [(), posts[3].boxes, (), posts[4].boxes, posts[1].boxes, ()]


def test_a_picture_without_another_goes() -> None:
    posts = [Post("a", "A"), Post("b", "B", b"B"), Post("c", "C")]
    assert [(post.post_id, post.image) for post in with_pictures(posts, "shuffled")] == [
        ("a", None),
        ("b", None),
        ("c", None),
    ]
    assert list(with_pictures([], "shuffled")) == []


@given(st.lists(st.booleans(), max_size=12))
def test_shuffled_pictures_are_each_given_once(have: list[bool]) -> None:
    posts = [Post(str(number), "t", bytes([number]) if has else None) for number, has in enumerate(have)]
    others = list(with_pictures(posts, "shuffled"))
    assert [post.post_id for post in others] == [post.post_id for post in posts]
    if sum(have) > 1:
        assert [post.image is not None for post in others] == have
        assert {post.image for post in others} == {post.image for post in posts}
        assert all(a.image is None or a.image != b.image for a, b in zip(others, posts, strict=True))
