"""The whole learning path on 16 posts: model, losses, optimizer, decoding and metrics must agree to reach 1.0."""

import random
from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import pytest
import torch
from PIL import Image, ImageDraw

from mnerqg.config import Config, LossConfig
from mnerqg.config_files import load_config
from mnerqg.config_jobs import ImageLimits
from mnerqg.errors import ModelError
from mnerqg.inputs.examples import make_example
from mnerqg.model.build import build_collator
from mnerqg.model.checkpoint import save_model
from mnerqg.model.losses import LossBalance, loss_terms
from mnerqg.model.mnerqg import MNERQG
from mnerqg.model.optimization import build_optimizer, learning_rate_factor, set_learning_rates
from mnerqg.queries import EntityQuery
from mnerqg.schema import Box, Post, Span
from mnerqg.scoring.score import score
from mnerqg.tagger import Tagger
from tests.builders import QUERIES, small_config, small_model, small_network, text_encoder

NAMES = {
    "PER": ("Ada Lovelace", "Bob", "Grace Hopper", "Linus T."),
    "LOC": ("Paris", "New York", "Oslo", "Río"),
    "ORG": ("BBC", "NASA", "the Red Cross", "Acme Inc"),
    "OTHER": ("iPhone", "Easter", "Star Wars", "Linux"),
}
STEPS = 160
COLOURS = {"PER": (220, 40, 40), "LOC": (40, 200, 60), "ORG": (50, 80, 230), "OTHER": (240, 220, 40)}


def _posts() -> list[Post]:
    """16 posts, each naming two entities of two types and showing each as a block of its type's colour."""
    generator = random.Random(3)
    posts = []
    for number in range(16):
        kinds = generator.sample(list(NAMES), 2)
        words = [NAMES[kind][number % 4] for kind in kinds]
        text = f"{words[0]} and then {words[1]} , really"
        spans = tuple(
            Span(text.index(word), text.index(word) + len(word), kind)
            for word, kind in zip(words, kinds, strict=True)
        )
        picture = Image.new("RGB", (96, 80), (128, 128, 128))
        boxes = []
        for half, kind in enumerate(kinds):
            left, top = half * 48 + generator.randint(2, 12), generator.randint(2, 30)
            right, bottom = left + generator.randint(22, 34), top + generator.randint(26, 44)
            ImageDraw.Draw(picture).rectangle((left, top, right, bottom), COLOURS[kind])
            boxes.append(Box(kind, left, top, right, bottom))
        file = BytesIO()
        picture.save(file, "JPEG", quality=95)
        posts.append(Post(str(number), text, file.getvalue(), spans, tuple(boxes), boxes_annotated=True))
    return posts


def _config() -> Config:
    recipe = """
        model: {width: 64, heads: 4, pyramid_width: 64, pyramid_depth: 1, backbone: resnet10t, image_side: 64,
                max_length: 64, dropout: 0.0, frozen_backbone_statistics: false}
        train: {lr: 2.0e-3, weight_decay: 0.0, precision: fp32}
    """
    return load_config(Config, recipe)


def _learn(posts: list[Post], queries: tuple[EntityQuery, ...]) -> tuple[MNERQG, dict[str, float]]:
    """A model trained on the posts until it knows them, and its scores on them."""
    config = _config()
    torch.manual_seed(0)
    model = small_model(config)
    encoder = text_encoder(queries)
    examples = [make_example(post, encoder, 64, ImageLimits()) for post in posts]
    optimizer = build_optimizer(model, config.train)
    balance = LossBalance(config.loss)
    batch = build_collator(config, encoder)(examples, with_targets=True)
    scores: dict[str, float] = {}
    for step in range(STEPS):
        set_learning_rates(optimizer, learning_rate_factor((step + 1) / STEPS, warmup=0.1))
        terms = loss_terms(model(batch), batch, LossConfig())
        optimizer.zero_grad()
        balance(terms).total.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if step % 20 == 19:
            tagger = Tagger(model=model, text_encoder=encoder, config=config, model_id="overfit")
            scores = score(tagger, posts).scores()
            if scores["f1"] == scores["accuracy_50"] == 1.0:
                break
    return model, scores


def test_sixteen_posts_are_learned_to_the_last_entity_and_box() -> None:
    _, scores = _learn(_posts(), QUERIES)
    assert scores["f1"] == 1.0
    assert scores["accuracy_50"] == 1.0
    assert scores["entities"] == 32
    assert scores["grounded_queries"] == 32


def test_a_type_that_was_never_trained_can_be_asked(
    tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    """Trained on three types, asked for all four: the three are answered as before, whatever the fourth comes to."""
    known, unknown = QUERIES[:3], QUERIES[3]
    posts = _posts()
    trained, scores = _learn(posts, known)
    assert scores["f1"] == 1.0
    save_model(tmp_path / "model", model=trained, text_encoder=text_encoder(known), config=_config())
    own = Tagger.load(tmp_path / "model", "cpu")
    asked = Tagger.load(tmp_path / "model", "cpu", queries=QUERIES)
    assert asked.types == (*own.types, unknown.type)
    assert asked.model_id != own.model_id
    measured = score(asked, posts).scores()
    for query in known:
        assert measured[f"f1_{query.type}"] == scores[f"f1_{query.type}"] == 1.0
    assert measured["entities"] == 32
    for tagged in asked.tag(posts):
        assert [kind for kind, _ in tagged.existence] == [query.type for query in QUERIES]
    record_property("f1_of_the_held_out_type", measured[f"f1_{unknown.type}"])
    print(f"held-out type {unknown.type}: F1 {measured[f'f1_{unknown.type}']:.3f}")


def test_a_baseline_cannot_be_asked(tmp_path: Path) -> None:
    config = small_config(tagger="bio", inputs="text", grounding=False)
    save_model(tmp_path / "model", model=small_network(config), text_encoder=text_encoder(), config=config)
    assert Tagger.load(tmp_path / "model", "cpu").tag([Post("1", "Ada")])[0].text_status == "ok"
    with pytest.raises(ModelError, match=r"labels words .* and cannot be asked"):
        Tagger.load(tmp_path / "model", "cpu", queries=QUERIES[:2])
