from dataclasses import replace
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from mnerqg.config import DecodeConfig, LossConfig
from mnerqg.errors import ModelError
from mnerqg.inputs.posts import PreparedPost, prepare_post
from mnerqg.schema import Box, Post, Span, TaggedPost
from mnerqg.scoring.metrics import Counts
from mnerqg.tagger import Tagger
from tests.builders import TYPES, image_bytes


@pytest.fixture(scope="module")
def tagger(tiny_model: Path) -> Tagger:
    """The small model with thresholds that let its random weights say much."""
    loaded = Tagger.load(tiny_model, device="cpu")
    decode = DecodeConfig(span_threshold=0.005, match_threshold=0.1, region_threshold=0.005)
    return Tagger(
        model=loaded.model,
        text_encoder=loaded.text_encoder,
        config=loaded.config.model_copy(update={"decode": decode}),
        model_id=loaded.model_id,
    )


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there_is_no_reason_to_take_the_cpu(tiny_model: Path) -> None:
    with pytest.raises(ModelError, match=r"torch sees no GPU; .* or ask for no GPU"):
        Tagger.load(tiny_model, device="cuda")


def photo() -> bytes:
    """A JPEG of 80 x 60 with something in it."""
    buffer = BytesIO()
    pixels = np.random.default_rng(0).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    Image.fromarray(pixels).resize((80, 60), Image.Resampling.BILINEAR).save(buffer, "JPEG")
    return buffer.getvalue()


def rotated() -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6
    return image_bytes(size=(80, 60), file_format="JPEG", exif=exif)


def animated() -> bytes:
    frames = [Image.new("P", (30, 20), colour) for colour in (1, 2, 3)]
    buffer = BytesIO()
    frames[0].save(buffer, "GIF", save_all=True, append_images=frames[1:])
    return buffer.getvalue()


TEXTS = {
    "null": (None, "empty"),
    "no text": ("", "empty"),
    "white space": (" \t\n\u3000", "empty"),
    "100,000 characters": ("Ada in Oslo " * 8334, "truncated"),
    "emoji": ("👩\u200d👩\u200d👧 in 🇩🇪 👍🏽", "ok"),
    "combining marks": ("Zu\u0308rich e\u0301te\u0301 " + "a" + "\u0301" * 50, "ok"),
    "right to left": (
        "\u05e9\u05b8\u05dc\u05d5\u05b9\u05dd \u0645\u0631\u062d\u0628\u0627 \u202eevil\u202c",
        "ok",
    ),
    "NUL": ("Ada\0 in\0 Oslo", "ok"),
    "lone surrogate": ("Ada \ud83d in Oslo", "ok"),
    "control": ("\x01\x02\x7f\u200b", "ok"),
}
IMAGES = {
    "none": (None, "none", None),
    "ok": (photo(), "ok", (80, 60)),
    "zero bytes": (b"", "unreadable", None),
    "truncated": (photo()[:-200], "unreadable", None),
    "HTML": (b"<html><body>404</body></html>", "unreadable", None),
    "CMYK": (image_bytes("CMYK", file_format="JPEG"), "ok", (40, 24)),
    "palette": (image_bytes("P"), "ok", (40, 24)),
    "16-bit": (image_bytes("I;16"), "ok", (40, 24)),
    "animated": (animated(), "ok", (30, 20)),
    "EXIF-rotated": (rotated(), "ok", (60, 80)),
    "1x1": (image_bytes(size=(1, 1)), "ok", (1, 1)),
    "20000x10": (image_bytes(size=(20000, 10)), "ok", (20000, 10)),
}


def oddities() -> list[Post]:
    posts = [Post(f"text {name}", text, photo()) for name, (text, _) in TEXTS.items()]
    return posts + [Post(f"image {name}", "Ada in Oslo", image) for name, (image, _, _) in IMAGES.items()]


def check(post: Post, tagged: TaggedPost) -> None:
    assert tagged.post_id == post.post_id
    for entity in tagged.entities:
        assert post.text is not None
        assert post.text[entity.start : entity.end] == entity.text != ""
        assert entity.type in TYPES
        assert 0 <= entity.score <= 1
        if entity.region is not None:
            assert tagged.regions[entity.region].type == entity.type
    for region in tagged.regions:
        assert tagged.image_width is not None
        assert tagged.image_height is not None
        assert 0 <= region.x_min < region.x_max <= tagged.image_width
        assert 0 <= region.y_min < region.y_max <= tagged.image_height
    assert [kind for kind, _ in tagged.existence] == list(TYPES)


def test_what_a_head_says_that_learned_nothing_is_no_answer(tagger: Tagger) -> None:
    """As after training without the loss of the grounding, or of the existence."""
    post = Post("1", "Ada in Oslo", photo(), (Span(0, 3, "PER"),), (Box("PER", 4, 4, 40, 30),), True)
    (full,) = tagger.tag([post])
    assert full.regions
    assert tagger.best_regions([post])[0]
    for weight in ("grounding_weight", "existence_weight"):
        loss = LossConfig(**{weight: 0.0})
        untaught = Tagger(
            model=tagger.model,
            text_encoder=tagger.text_encoder,
            config=tagger.config.model_copy(update={"loss": loss}),
            model_id=tagger.model_id,
        )
        (answer,) = untaught.tag([post])
        assert [replace(entity, region=None) for entity in answer.entities] == [
            replace(entity, region=None) for entity in full.entities
        ]
        if weight == "existence_weight":
            assert (answer.existence, answer.regions) == ((), full.regions)
        else:
            assert (answer.existence, answer.regions) == (full.existence, ())
            assert all(entity.region is None for entity in answer.entities)
            assert untaught.best_regions([post]) == [()]


def test_every_oddity_gets_one_answer_in_order(tagger: Tagger) -> None:
    posts = oddities()
    tagged = tagger.tag(posts, batch_size=8)
    assert len(tagged) == len(posts)
    for post, answer in zip(posts, tagged, strict=True):
        check(post, answer)
    answers = {answer.post_id: answer for answer in tagged}
    for name, (_, status) in TEXTS.items():
        answer = answers[f"text {name}"]
        assert (answer.text_status, answer.image_status) == (status, "ok"), name
        assert answer.entities == () or status != "empty"
    for name, (_, status, size) in IMAGES.items():
        answer = answers[f"image {name}"]
        assert (answer.image_status, answer.text_status) == (status, "ok"), name
        assert (answer.image_width, answer.image_height) == (size or (None, None)), name
        assert (answer.error is not None) == (status == "unreadable"), name
        assert answer.regions == () or status == "ok"
    assert any(answer.entities for answer in tagged)
    assert any(answer.regions for answer in tagged)


@pytest.mark.parametrize("batch_size", [1, 3])
def test_the_batch_size_changes_nothing(tagger: Tagger, batch_size: int) -> None:
    posts = oddities()[4:]
    for one, other in zip(tagger.tag(posts), tagger.tag(posts, batch_size=batch_size), strict=True):
        assert [score for _, score in one.existence] == pytest.approx(
            [score for _, score in other.existence], abs=1e-4
        )
        assert [(e.start, e.end, e.type, e.region) for e in one.entities] == [
            (e.start, e.end, e.type, e.region) for e in other.entities
        ]
        assert [e.score for e in one.entities] == pytest.approx([e.score for e in other.entities], abs=1e-4)
        assert [r.type for r in one.regions] == [r.type for r in other.regions]
        for a, b in zip(one.regions, other.regions, strict=True):
            scale = max(one.image_width or 1, one.image_height or 1) / 64
            assert (*a.xyxy_px, a.score) == pytest.approx((*b.xyxy_px, b.score), abs=1e-3 * max(scale, 1))


def test_no_posts(tagger: Tagger) -> None:
    assert tagger.tag([]) == []
    assert tagger.tag_prepared([]) == []
    assert tagger.score([]) == Counts(TYPES)
    assert tagger.score_at([], [0.1, 0.2]) == [Counts(TYPES), Counts(TYPES)]


def test_tagging_leaves_the_models_mode(tagger: Tagger) -> None:
    for mode in (True, False):
        tagger.model.train(mode)
        tagger.tag([Post("1", "Ada", photo())])
        assert tagger.model.training is mode


def test_a_status_from_fetching_is_kept(tagger: Tagger) -> None:
    prepared = PreparedPost("1", "Ada", image_status="forbidden", error="403")
    (answer,) = tagger.tag_prepared([prepared])
    assert (answer.image_status, answer.error, answer.regions) == ("forbidden", "403", ())


def test_a_picture_over_the_limits(tagger: Tagger) -> None:
    limits = type(tagger.limits)(max_bytes=10)
    prepared = prepare_post(Post("1", "Ada", photo()), 64, limits)
    assert (prepared.image_status, prepared.pixels) == ("too_large", None)
    assert prepared.error is not None


@pytest.mark.parametrize("batch_size", [1, 4, 16])
def test_every_post_is_scored_once(tagger: Tagger, batch_size: int) -> None:
    posts = [
        Post(str(number), "Ada in Oslo", photo() if number % 2 else None, (Span(0, 3, "PER"),),
             (Box("PER", 0, 0, 40, 40),), boxes_annotated=True)
        for number in range(9)
    ]  # fmt: skip
    scores = tagger.score(iter(posts), batch_size=batch_size).scores()
    assert (scores["posts"], scores["entities"], scores["grounded_queries"]) == (9, 9, 9)


def test_scores_at_several_thresholds(tagger: Tagger) -> None:
    """As those of so many models that have one of the thresholds each."""
    posts = [Post(str(number), "Ada in Oslo", photo(), (Span(0, 3, "PER"),)) for number in range(3)]
    thresholds = [0.005, 0.012, 0.9]
    found = tagger.score_at(posts, thresholds)
    for counts, threshold in zip(found, thresholds, strict=True):
        decode = tagger.config.decode.at(threshold)
        alone = Tagger(
            model=tagger.model,
            text_encoder=tagger.text_encoder,
            config=tagger.config.model_copy(update={"decode": decode}),
            model_id=tagger.model_id,
        )
        assert counts == alone.score(posts)
    assert found[0] != found[2]


def test_scores_agree_with_tags(tagger: Tagger) -> None:
    post = Post("1", "Ada in Oslo", photo())
    (tagged,) = tagger.tag([post])
    assert tagged.entities
    gold = tuple(Span(entity.start, entity.end, entity.type) for entity in tagged.entities)
    assert tagger.score([Post("1", "Ada in Oslo", photo(), gold)]).scores()["f1"] == 1
