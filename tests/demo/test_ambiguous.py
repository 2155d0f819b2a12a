"""The world in which only the picture knows: what it holds, and that its texts tell no type."""

from collections import Counter

import pytest

from mnerqg.datasets.twitter import SplitSummary, read_split
from mnerqg.demo.ambiguous import SPLIT_POSTS, write_ambiguous
from mnerqg.schema import Post


@pytest.fixture(scope="module")
def splits(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Post]]:
    root = tmp_path_factory.mktemp("ambiguous")
    write_ambiguous(root, seed=7)
    posts = {}
    for split in SPLIT_POSTS:
        summary = SplitSummary()
        posts[split] = list(read_split(root, split, summary))
        assert summary.boxes_joined == summary.pictures_found == len(posts[split]) == SPLIT_POSTS[split]
    return posts


def test_a_post_has_one_entity_and_one_box_of_its_type(splits: dict[str, list[Post]]) -> None:
    for post in splits["train"] + splits["test"]:
        (entity,), (box,) = post.entities, post.boxes
        assert box.type == entity.type
        assert post.boxes_annotated


def test_neither_names_nor_sentences_tell_the_type(splits: dict[str, list[Post]]) -> None:
    """The best that a text allows: of every name, or of every sentence, the type that is most frequent in train."""
    posts = splits["train"]
    for key in (_sentence, _first_letter):
        by_key: dict[str, Counter[str]] = {}
        for post in posts:
            by_key.setdefault(key(post), Counter())[post.entities[0].type] += 1
        right = sum(
            1
            for post in splits["test"]
            if key(post) in by_key and by_key[key(post)].most_common(1)[0][0] == post.entities[0].type
        )
        assert right / len(splits["test"]) < 0.4


def _sentence(post: Post) -> str:
    assert post.text is not None
    (entity,) = post.entities
    return post.text[: entity.start] + post.text[entity.end :]


def _first_letter(post: Post) -> str:
    assert post.text is not None
    return post.text[post.entities[0].start]


def test_a_third_of_the_names_is_held_out(splits: dict[str, list[Post]]) -> None:
    names = {split: {_name(post) for post in posts} for split, posts in splits.items()}
    unseen = names["test"] - names["train"]
    assert 0.2 < len(unseen) / len(names["test"]) < 0.6


def _name(post: Post) -> str:
    assert post.text is not None
    (entity,) = post.entities
    return post.text[entity.start : entity.end]
