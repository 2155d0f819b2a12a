"""Eight families of encoders, from tokenizer to answer: each learns posts by heart, is saved, loaded, and tags."""

import logging
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

from mnerqg.config import Config, LossConfig
from mnerqg.config_jobs import ImageLimits
from mnerqg.errors import ModelError
from mnerqg.inputs.batch import Texts
from mnerqg.inputs.examples import make_example
from mnerqg.inputs.text import load_text_encoder
from mnerqg.model.build import Network, build_collator, build_pretrained, try_out
from mnerqg.model.checkpoint import save_model
from mnerqg.model.encoder import encoder_states, take_sdpa
from mnerqg.model.losses import LossBalance, loss_terms
from mnerqg.model.optimization import build_optimizer, learning_rate_factor, set_learning_rates
from mnerqg.schema import Post, Span
from mnerqg.scoring.score import score
from mnerqg.tagger import Tagger
from tests.archives import TEXTS
from tests.builders import AWKWARD, QUERIES, laid, small_config
from tests.encoders import FAMILIES, write_encoder

pytestmark = pytest.mark.usefixtures("one_thread")

GLUED = (
    "(London)",
    "#London",
    "@London",
    "London's",
    "London,",
    "Oslo/London",
    "London🎉",
    "«London»",
    "London–Oslo",
)
HARD = [
    *(text for text, _ in TEXTS),
    AWKWARD,
    " ".join(AWKWARD),
    *(f"Ada met  {text}\n in Zu\u0308rich" for text in GLUED),
]
STEPS = 200  # at most; most families know the posts after 30


def _post(number: int, marked: str) -> Post:
    """A post of a text whose entities are marked as [LOC:London]."""
    text, spans = "", []
    for part in marked.replace("]", "[").split("["):
        kind, colon, name = part.partition(":")
        if colon:
            spans.append(Span(len(text), len(text) + len(name), kind))
            text += name
        else:
            text += part
    return Post(str(number), text, None, tuple(spans))


POSTS = [
    _post(number, marked)
    for number, marked in enumerate(
        [
            "[PER:Ada Lovelace] of ([LOC:London])",
            "names of #[LOC:London] and [ORG:BBC]",
            "[PER:Linus] met @[LOC:London]",
            "people in [LOC:London]'s places",
            "[LOC:London], the city of [ORG:NASA]",
            "word of [LOC:New York]",
            "[OTHER:iPhone] and [OTHER:Linux], word",
            "the city",
        ]
    )
]


@cache
def _config(folder: Path, **model: Any) -> Config:
    """A recipe for the text alone."""
    settings = {"inputs": "text", "grounding": False, "width": 64, "heads": 4, "max_length": 128}
    settings |= {"encoder": str(folder), "encoder_dropout": 0.0} | model
    recipe = small_config(**settings)
    train = recipe.train.model_copy(update={"lr": 5e-3, "weight_decay": 0.0, "precision": "fp32"})
    return recipe.model_copy(update={"train": train})


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The folder of a family's encoder; each is made once."""

    @cache
    def folder(family: str) -> Path:
        return write_encoder(family, tmp_path_factory.mktemp(family))

    return folder


def _learn(config: Config) -> tuple[Network, Tagger]:
    torch.manual_seed(0)
    network = build_pretrained(config.model, len(QUERIES))
    encoder = load_text_encoder(config.model, QUERIES)
    try_out(network, config, encoder)
    batch = build_collator(config, encoder)(
        [make_example(post, encoder, 64, ImageLimits()) for post in POSTS], with_targets=True
    )
    optimizer = build_optimizer(network, config.train)
    balance = LossBalance(config.loss)
    network.train()
    for step in range(STEPS):
        set_learning_rates(optimizer, learning_rate_factor((step + 1) / STEPS, warmup=0.05))
        optimizer.zero_grad()
        balance(loss_terms(network(batch), batch, LossConfig())).total.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        if step % 10 == 9:
            tagger = Tagger(model=network, text_encoder=encoder, config=config, model_id="x")
            if score(tagger, POSTS).scores()["f1"] == 1.0:
                break
    return network, tagger


@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_learns_and_answers_exactly(family: str, folders: Any, tmp_path: Path) -> None:
    """Before, the first forward pass of RoBERTa and XLM-R was an IndexError, MPNet had one separator and only with
    eager, DeBERTa, ModernBERT, DistilBERT and ELECTRA were a TypeError."""
    config = _config(folders(family))
    network, tagger = _learn(config)
    assert {parameter.dtype for parameter in network.parameters()} == {torch.float32}
    assert score(tagger, POSTS).scores()["f1"] == 1.0
    save_model(tmp_path, model=network, text_encoder=tagger.text_encoder, config=config)
    loaded = Tagger.load(tmp_path, device="cpu")
    assert loaded.tag(POSTS) == tagger.tag(POSTS)
    open_to_all = config.decode.model_copy(update={"span_threshold": 0.0, "match_threshold": 0.0})
    hard = [Post(str(number), text) for number, text in enumerate(HARD)]
    assert [answer.text_status for answer in loaded.tag(hard)][: len(TEXTS)] == [
        status for _, status in TEXTS
    ]
    for posts in (POSTS, [post for post in hard if len(post.text or "") < 200]):
        (answers,) = loaded.answers_at(posts, [open_to_all])
        assert any(answer.entities for answer in answers)
        for post, answer in zip(posts, answers, strict=True):
            for entity in answer.entities:
                assert entity.text == (post.text or "")[entity.start : entity.end]
                assert entity.text == entity.text.strip() != ""


@pytest.mark.parametrize("family", FAMILIES)
def test_a_name_is_a_word_whatever_is_glued_to_it(family: str, folders: Any) -> None:
    """With XLM-R "(London)" could only be answered whole, and DeBERTa's " London" began with a blank."""
    encoder = load_text_encoder(_config(folders(family)).model, QUERIES)
    for glued in GLUED:
        text = f"met  {glued} today"
        start = text.index("London")
        encoded = encoder.encode(text)
        pieces = encoded.piece_span(Span(start, start + 6, "LOC"))
        assert pieces is not None
        first, last = pieces
        assert (encoded.starts[first], encoded.ends[last]) == (start, start + 6), glued
        assert encoded.begins_word[first], glued
        assert encoded.ends_word[last], glued


@pytest.mark.parametrize("family", FAMILIES)
def test_a_row_is_what_the_tokenizer_makes_of_a_pair(family: str, folders: Any) -> None:
    config = _config(folders(family))
    encoder = load_text_encoder(config.model, QUERIES)
    batch = build_collator(config, encoder)(
        [make_example(POSTS[0], encoder, 64, ImageLimits())], with_targets=False
    )
    for k, query in enumerate(QUERIES):
        pair = encoder._tokenizer(query.query, POSTS[0].text, return_token_type_ids=True)
        size = len(pair["input_ids"])
        assert laid(batch, "input_ids")[0, k, :size].tolist() == pair["input_ids"]
        assert laid(batch, "token_type_ids")[0, k, :size].tolist() == pair["token_type_ids"]
        assert batch.attention_mask[0, k].sum() == size
        parts = pair.sequence_ids()
        asked = [place for place, part in enumerate(parts) if part == 0]
        assert batch.query_mask[0, k].nonzero().flatten().tolist() == asked
        assert batch.sentence_offset[0, k] == parts.index(1)


@pytest.mark.parametrize("family", FAMILIES)
def test_what_has_learned_with_eager_answers_alike_with_sdpa(family: str, folders: Any) -> None:
    """As `ready_to_answer` has it on a GPU; MPNet has eager attention alone."""
    encoder = build_pretrained(
        _config(folders(family), encoder_attention="eager").model, len(QUERIES)
    ).encoder
    encoder.eval()
    mask = torch.ones(2, 12, dtype=torch.bool)
    mask[1, 5:] = False
    pieces = torch.arange(5, 29).view(2, 12)
    texts = Texts(pieces, torch.zeros_like(pieces), mask)
    config: Any = encoder.config
    assert config._attn_implementation == "eager"
    with torch.inference_mode():
        eager = encoder_states(encoder, texts)[mask]
        take_sdpa(encoder)
        sdpa = encoder_states(encoder, texts)[mask]
    torch.testing.assert_close(sdpa, eager, rtol=0, atol=1e-5)
    with_eager_alone = ("mpnet", "deberta-v2")
    assert (config._attn_implementation == "eager") == (family in with_eager_alone), family


def test_half_precision_is_loaded_as_float32(tmp_path: Path) -> None:
    """Its type was kept before: 55 % of the weights had moved after five steps, in place of all."""
    write_encoder("bert", tmp_path, torch.bfloat16)
    network = build_pretrained(_config(tmp_path).model, len(QUERIES))
    assert {parameter.dtype for parameter in network.parameters()} == {torch.float32}


def test_the_log_says_which_attention_there_is(folders: Any, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, logger="mnerqg"):
        build_pretrained(_config(folders("mpnet")).model, len(QUERIES))
    assert f"the encoder {folders('mpnet')} has no sdpa attention; it runs with eager" in caplog.messages
    caplog.clear()
    with caplog.at_level(logging.WARNING, logger="mnerqg"):
        build_pretrained(_config(folders("roberta")).model, len(QUERIES))
    assert not any("attention" in message for message in caplog.messages)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_dropout_of_any_family_can_be_set(family: str, folders: Any) -> None:
    network = build_pretrained(_config(folders(family), encoder_dropout=0.0).model, len(QUERIES))
    ids = torch.arange(5, 21).reshape(1, 16)
    texts = Texts(ids, torch.zeros_like(ids), torch.ones(1, 16, dtype=torch.bool))
    network.train()
    one, other = (encoder_states(network.encoder, texts) for _ in range(2))
    assert torch.equal(one, other)


def test_an_encoder_that_cannot_work_is_one_line(tmp_path: Path, folders: Any) -> None:
    from transformers import GPT2Config, GPT2Model, T5Config, T5Model

    small = {"d_model": 32, "d_kv": 16, "d_ff": 32, "num_layers": 1, "num_heads": 2}
    tokenizer = load_text_encoder(_config(folders("bert")).model, QUERIES)
    T5Model(T5Config(vocab_size=400, **small)).save_pretrained(tmp_path / "t5")
    config = _config(tmp_path / "t5")
    with pytest.raises(
        ModelError, match=r"t5, which cannot read a post of \d+ pieces: .*; name another encoder"
    ):
        try_out(build_pretrained(config.model, len(QUERIES)), config, tokenizer)
    GPT2Model(GPT2Config(vocab_size=400, n_embd=32, n_layer=1, n_head=2)).save_pretrained(tmp_path / "gpt2")
    bytes_alone = load_text_encoder(_config(folders("roberta")).model, QUERIES)._tokenizer
    bytes_alone.backend_tokenizer.post_processor = None
    bytes_alone.save_pretrained(tmp_path / "gpt2")
    (tmp_path / "gpt2" / "tokenizer_config.json").write_text('{"tokenizer_class": "GPT2TokenizerFast"}')
    with pytest.raises(
        ModelError, match="puts nothing between a query and a sentence; name the encoder of another"
    ):
        load_text_encoder(_config(tmp_path / "gpt2").model, QUERIES)
