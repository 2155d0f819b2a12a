import shutil
from dataclasses import replace
from io import BytesIO
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from PIL import Image

import mnerqg.tagger
from mnerqg.config import LossConfig
from mnerqg.errors import ModelError
from mnerqg.inputs.batch import Batch
from mnerqg.inputs.posts import PreparedPost, prepare_post
from mnerqg.model.files import WEIGHTS_FILE
from mnerqg.model.precision import multiplies_bf16
from mnerqg.schema import Box, Post, Span, TaggedPost
from mnerqg.tagger import Tagger
from tests.builders import TYPES, image_bytes, photo, small_config, small_model, text_encoder
from tests.memory import peak_memory


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


def reading(tagger: Tagger, windows: int) -> Tagger:
    return Tagger(
        model=tagger.model,
        text_encoder=tagger.text_encoder,
        config=tagger.config,
        model_id=tagger.model_id,
        windows=windows,
    )


def test_all_of_a_long_text_is_tagged_in_windows(talkative: Tagger) -> None:
    name = "Ada Lovelace met Grace Hopper in Oslo, "
    posts = [
        Post("short", name, photo()),
        Post("long", name * 6 + "🔥Ada🔥", photo()),
        Post("blank", " " * 5000, photo()),
        Post("longer", name * 100),
        Post("none", None),
    ]
    cut, tagged = talkative.tag(posts), reading(talkative, 14).tag(posts, batch_size=8)
    for post, one, other in zip(posts, cut, tagged, strict=True):
        check(post, other)
        text = post.text or ""
        if len(text) < 100 or text.isspace():
            assert (one.text_read, other.text_read) == (len(text), len(text))
            assert [(e.start, e.end, e.type) for e in one.entities] == [
                (e.start, e.end, e.type) for e in other.entities
            ]
    assert [post.text_status for post in cut] == ["ok", "truncated", "empty", "truncated", "empty"]
    assert [post.text_status for post in tagged] == ["ok", "ok", "empty", "truncated", "empty"]
    assert cut[1].text_read < 100
    assert tagged[1].text_read == len(posts[1].text or "")
    assert 300 < tagged[3].text_read < 1000, "so much is read of a text, whatever its length"
    for one, other in ((cut[1], tagged[1]), (cut[3], tagged[3])):
        last = max(entity.end for entity in other.entities)
        assert max(entity.end for entity in one.entities) <= one.text_read < last <= other.text_read
        assert other.text_read - last < 200
        spans = sorted((entity.start, entity.end) for entity in other.entities)
        assert all(end <= start for (_, end), (start, _) in pairwise(spans)), "once, and none overlap"
    assert (tagged[1].image_width, tagged[1].image_status) == (80, "ok")
    assert len(tagged[1].regions) == len({region.type for region in tagged[1].regions}) > 0


@pytest.mark.parametrize("windows", [1, 3])
def test_a_text_of_16_mib_costs_what_is_read_of_it(
    talkative: Tagger, windows: int, tokenised: list[int]
) -> None:
    """Also where an emoji in it makes Python keep four bytes a character: no copy is made of the whole."""
    post = Post("1", "Ada🔥 " + "wow! " * (16 * 2**20 // 5))
    tagger = reading(talkative, windows)
    tagger.tag([Post("2", "Ada")])
    tokenised.clear()
    with peak_memory() as peak:
        (answer,) = tagger.tag([post])
    assert sum(tokenised) < 2_000 * windows
    assert peak.more < 50 * 2**20
    assert answer.text_status == "truncated"
    assert 50 * windows < answer.text_read < 300 * windows


def test_the_picture_of_a_long_text_is_encoded_once_a_batch(
    talkative: Tagger, monkeypatch: pytest.MonkeyPatch
) -> None:
    pictures = []
    forward = type(talkative.model).forward

    def counted(model: torch.nn.Module, batch: Batch) -> object:
        pictures.append((len(batch.pixels), batch.picture.tolist()))
        return forward(model, batch)

    monkeypatch.setattr(type(talkative.model), "forward", counted)
    prepared = prepare_post(Post("1", "Ada in Oslo " * 40, photo()), 64, talkative.limits)
    reading(talkative, 3).tag_prepared([prepared, replace(prepared), PreparedPost("Ada")])
    assert pictures == [(1, [0, 0, 0]), (1, [0, 0, 0]), (0, [])]


def test_no_posts(talkative: Tagger) -> None:
    assert talkative.tag([]) == []
    assert talkative.tag_prepared([]) == []


def test_precision_is_the_models_own_on_a_gpu_and_exact_on_a_cpu_unless_asked(tiny_model: Path) -> None:
    post = Post("1", "Ada in Oslo", photo())
    exact, rough = (Tagger.load(tiny_model, device="cpu", precision=one) for one in (None, "bf16"))
    types = [next(tagger.model.parameters()).dtype for tagger in (exact, rough)]
    has_bf16 = multiplies_bf16(torch.device("cpu"))
    assert types == [torch.float32, torch.bfloat16 if has_bf16 else torch.float32]
    (one,), (other,) = exact.tag([post]), rough.tag([post])
    assert [score for _, score in other.existence] == pytest.approx(
        [score for _, score in one.existence], abs=0.02
    )


def test_a_model_that_cannot_be_compiled_says_so(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def without_compiler(network: torch.nn.Module) -> None:
        def fail(*_: object) -> None:
            raise RuntimeError("Failed to find C compiler")

        network.register_forward_pre_hook(fail)

    monkeypatch.setattr(mnerqg.tagger, "compile_parts", without_compiler)
    with pytest.raises(ModelError, match=r"cannot be compiled here: .*C compiler; leave compiled at false"):
        Tagger.load(tiny_model, device="cpu", compiled=True)


def test_a_model_may_be_written_over_once_it_is_loaded(tiny_model: Path, tmp_path: Path) -> None:
    """In place, as `cp` does it: its weights are mapped from the file while it is loaded."""
    copy = tmp_path / "model"
    shutil.copytree(tiny_model, copy)
    tagger, post = Tagger.load(copy, device="cpu"), Post("1", "Ada in Oslo", photo())
    before = Tagger.load(copy, device="cpu").tag([post])
    weights = copy / WEIGHTS_FILE
    with weights.open("r+b") as file:
        file.write(b"\xff" * weights.stat().st_size)
    assert tagger.tag([post]) == before


@pytest.mark.parametrize("training", [True, False])
def test_a_tagger_leaves_the_network_as_it_is(talkative: Tagger, training: bool) -> None:
    network = small_model().train(training)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    tagger = Tagger(model=network, text_encoder=text_encoder(), config=small_config(), model_id="in training")
    tagger.tag([Post("1", "Ada", photo())])
    assert network.training is training
    assert all(parameter.requires_grad for parameter in network.parameters())
    after = network.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())


def test_a_status_from_fetching_is_kept(talkative: Tagger) -> None:
    prepared = PreparedPost("Ada", image_status="forbidden", error="403")
    (answer,) = talkative.tag_prepared([prepared])
    assert (answer.image_status, answer.error, answer.regions) == ("forbidden", "403", ())


def test_a_picture_over_the_limits(talkative: Tagger) -> None:
    limits = type(talkative.limits)(max_bytes=10)
    prepared = prepare_post(Post("1", "Ada", photo()), 64, limits)
    assert (prepared.image_status, prepared.pixels) == ("too_large", None)
    assert prepared.error is not None
