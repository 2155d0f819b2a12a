"""Scores of the small model, whose thresholds let its random weights say much."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mnerqg.schema import Box, Post, Span
from mnerqg.scoring.metrics import Counts
from mnerqg.scoring.score import score, score_at, score_each, with_pictures
from mnerqg.tagger import Tagger
from tests.builders import TYPES, photo


def test_no_posts(talkative: Tagger) -> None:
    assert score(talkative, []) == Counts(TYPES)
    assert score_at(talkative, [], [talkative.config.decode] * 2, [0.5]) == [[Counts(TYPES)]] * 2


@pytest.mark.parametrize("batch_size", [1, 4, 16])
def test_every_post_is_scored_once(talkative: Tagger, batch_size: int) -> None:
    posts = [
        Post(str(number), "Ada in Oslo", photo() if number % 2 else None, (Span(0, 3, "PER"),),
             (Box("PER", 0, 0, 40, 40),), boxes_annotated=True)
        for number in range(9)
    ]  # fmt: skip
    scores = score(talkative, iter(posts), batch_size=batch_size).scores()
    assert (scores["posts"], scores["entities"], scores["grounded_queries"]) == (9, 9, 9)


def test_scores_at_several_thresholds(talkative: Tagger) -> None:
    """As those of so many models that have one of the thresholds each; a region where there is no box is wrong."""
    (tagged,) = talkative.tag([Post("x", "Ada in Oslo", photo())])
    gold = tuple(Span(entity.start, entity.end, entity.type) for entity in tagged.entities)
    posts = [Post(str(number), "Ada in Oslo", photo(), gold, boxes_annotated=True) for number in range(3)]
    own = talkative.config.decode
    decodes = [own.at(threshold) for threshold in (0.005, 0.012, 0.9)]
    regions = (own.region_threshold, 0.0, 1.0)
    found = score_at(talkative, posts, decodes, regions)
    for row, decode in zip(found, decodes, strict=True):
        for counts, threshold in zip(row, regions, strict=True):
            alone = Tagger(
                model=talkative.model,
                text_encoder=talkative.text_encoder,
                config=talkative.config.model_copy(
                    update={"decode": decode.model_copy(update={"region_threshold": threshold})}
                ),
                model_id=talkative.model_id,
            )
            assert counts == score(alone, posts)
    assert found[0][0] != found[2][0]
    assert found[0][1] != found[0][2]


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
