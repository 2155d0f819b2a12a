from dataclasses import replace
from io import BytesIO
from pathlib import Path

import pytest
import torch
from PIL import Image

from mnerqg.config import LossConfig
from mnerqg.errors import ModelError
from mnerqg.inputs.posts import PreparedPost, prepare_post
from mnerqg.schema import Box, Post, Span, TaggedPost
from mnerqg.tagger import Tagger
from tests.builders import TYPES, image_bytes, photo


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there_is_no_reason_to_take_the_cpu(tiny_model: Path) -> None:
    with pytest.raises(ModelError, match=r"torch sees no GPU; .* or ask for no GPU"):
        Tagger.load(tiny_model, device="cuda")


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
    "truncated": (photo()[:-200], "ok", (80, 60)),
    "mostly gone": (photo()[: len(photo()) // 2], "unreadable", None),
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


def test_what_a_head_says_that_learned_nothing_is_no_answer(talkative: Tagger) -> None:
    """As after training without the loss of the grounding, or of the existence."""
    post = Post("1", "Ada in Oslo", photo(), (Span(0, 3, "PER"),), (Box("PER", 4, 4, 40, 30),), True)
    (full,) = talkative.tag([post])
    assert full.regions
    assert talkative.best_regions([post])[0]
    for weight in ("grounding_weight", "existence_weight"):
        loss = LossConfig(**{weight: 0.0})
        untaught = Tagger(
            model=talkative.model,
            text_encoder=talkative.text_encoder,
            config=talkative.config.model_copy(update={"loss": loss}),
            model_id=talkative.model_id,
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


def test_every_oddity_gets_one_answer_in_order(talkative: Tagger) -> None:
    posts = oddities()
    tagged = talkative.tag(posts, batch_size=8)
    assert len(tagged) == len(posts)
    for post, answer in zip(posts, tagged, strict=True):
        check(post, answer)
    answers = {post.post_id: answer for post, answer in zip(posts, tagged, strict=True)}
    for name, (_, status) in TEXTS.items():
        answer = answers[f"text {name}"]
        assert (answer.text_status, answer.image_status) == (status, "ok"), name
        assert answer.entities == () or status != "empty"
    for name, (_, status, size) in IMAGES.items():
        answer = answers[f"image {name}"]
        assert (answer.image_status, answer.text_status) == (status, "ok"), name
        assert (answer.image_width, answer.image_height) == (size or (None, None)), name
        assert (answer.error is not None) == (status == "unreadable" or name == "truncated"), name
        assert answer.regions == () or status == "ok"
    assert any(answer.entities for answer in tagged)
    assert any(answer.regions for answer in tagged)


@pytest.mark.parametrize("batch_size", [1, 3])
def test_the_batch_size_changes_nothing(talkative: Tagger, batch_size: int) -> None:
    posts = oddities()[4:]
    for one, other in zip(talkative.tag(posts), talkative.tag(posts, batch_size=batch_size), strict=True):
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


def test_no_posts(talkative: Tagger) -> None:
    assert talkative.tag([]) == []
    assert talkative.tag_prepared([]) == []


def test_tagging_leaves_the_models_mode(talkative: Tagger) -> None:
    for mode in (True, False):
        talkative.model.train(mode)
        talkative.tag([Post("1", "Ada", photo())])
        assert talkative.model.training is mode


def test_a_status_from_fetching_is_kept(talkative: Tagger) -> None:
    prepared = PreparedPost("Ada", image_status="forbidden", error="403")
    (answer,) = talkative.tag_prepared([prepared])
    assert (answer.image_status, answer.error, answer.regions) == ("forbidden", "403", ())


def test_a_picture_over_the_limits(talkative: Tagger) -> None:
    limits = type(talkative.limits)(max_bytes=10)
    prepared = prepare_post(Post("1", "Ada", photo()), 64, limits)
    assert (prepared.image_status, prepared.pixels) == ("too_large", None)
    assert prepared.error is not None
