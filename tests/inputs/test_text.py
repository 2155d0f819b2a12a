import unicodedata
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from mnerqg.errors import ModelError
from mnerqg.inputs.borders import kinds
from mnerqg.inputs.text import (
    EncodedText,
    TextEncoder,
    TextEncoderSource,
    load_tokenizer,
    resolve_encoder,
)
from mnerqg.queries import QUERY_STYLES, EntityQuery
from mnerqg.schema import Span
from tests.builders import QUERIES, text_encoder, tokenizer, unicode_text
from tests.encoders import FAMILIES, TOKENIZERS, family_tokenizer
from tests.memory import peak_memory

ODDITIES = [
    "",
    " ",
    " \t\n\u3000\u00a0",
    "\0",
    "a\0b",
    "\ud800",
    "Ada\udfff Lovelace",
    "e\u0301te\u0301 a\u0300 Zu\u0308rich",
    "\u0301",
    "\u0301 \u0301Ada",
    "👩\u200d👩\u200d👧 at 🇩🇪 👍🏽!",
    "\u05e9\u05b8\u05c1\u05dc\u05d5\u05b9\u05dd \u0645\u064e\u0631\u0652\u062d\u064e\u0628\u064b\u0627 London",
    "北京 and 東京タワー \ud55c\uad6d",
    "\u202eevil\u202c",
    "\ufeffBOM",
    "İstanbul ﬁne ΣΊΣΥΦΟΣ Straße",
    "#MakeItSo @user: http://t.co/x",
    "[CLS] [SEP] [PAD] [UNK] [MASK]",
    "x" * 500,
    "a" + "\u0301" * 300,
]


def check(text: str, encoded: EncodedText) -> None:
    lists = (encoded.starts, encoded.ends, encoded.begins_word, encoded.ends_word)
    assert all(len(entries) == len(encoded.token_ids) for entries in lists)
    assert all(0 <= start < end <= len(text) for start, end in zip(encoded.starts, encoded.ends, strict=True))
    assert encoded.starts == sorted(encoded.starts)
    assert encoded.ends == sorted(encoded.ends)
    first = [start for start, begins in zip(encoded.starts, encoded.begins_word, strict=True) if begins]
    last = [end for end, ends in zip(encoded.ends, encoded.ends_word, strict=True) if ends]
    assert all(end <= start for end, start in zip(last, first[1:], strict=False)), "words overlap"


@settings(max_examples=300, deadline=None)
@given(unicode_text)
def test_any_text_gives_offsets_within_it(text: str) -> None:
    encoded = text_encoder().encode(text)
    check(text, encoded)
    if encoded.token_ids and not encoded.truncated:
        assert encoded.begins_word[0]
        assert encoded.ends_word[-1]


@pytest.mark.parametrize("text", ODDITIES, ids=ascii)
def test_oddities(text: str) -> None:
    check(text, text_encoder().encode(text))


def words(text: str, encoded: EncodedText) -> list[str]:
    begins = [index for index, begins in enumerate(encoded.begins_word) if begins]
    ends = [index for index, ends in enumerate(encoded.ends_word) if ends]
    return [text[encoded.starts[i] : encoded.ends[j]] for i, j in zip(begins, ends, strict=True)]


def test_words_are_whole_and_marks_stay_with_their_letter() -> None:
    text = "Zu\u0308rich's caf\u00e9, e\u0301te\u0301! \u05e9\u05b8\u05dc\u05d5\u05b9\u05dd 北京 👍🏽"
    assert words(text, text_encoder().encode(text)) == [
        *("Zu\u0308rich", "'", "s", "caf\u00e9", ",", "e\u0301te\u0301", "!"),
        *("\u05e9\u05b8\u05dc\u05d5\u05b9\u05dd", "北", "京", "👍🏽"),
    ]


@settings(max_examples=100, deadline=None)
@given(st.lists(st.sampled_from(["Ada", "Zürich", "caf" + "e\u0301", "北京", "42", "שָׁלוֹם"]), min_size=1))
def test_a_word_taken_out_is_read_as_the_same_pieces(parts: list[str]) -> None:
    text = " ".join(parts)
    encoded = text_encoder().encode(text)
    begins = [index for index, begins in enumerate(encoded.begins_word) if begins]
    ends = [index for index, ends in enumerate(encoded.ends_word) if ends]
    for i, j in zip(begins, ends, strict=False):
        taken = text[encoded.starts[i] : encoded.ends[j]]
        assert text_encoder().encode(taken).token_ids == encoded.token_ids[i : j + 1]


def test_text_that_spells_special_tokens_is_only_text() -> None:
    special = {tokenizer().cls_token_id, tokenizer().sep_token_id, tokenizer().pad_token_id}
    encoded = text_encoder().encode("read [SEP] and [CLS] or [PAD] aloud")
    assert not special & set(encoded.token_ids)
    check("read [SEP] and [CLS] or [PAD] aloud", encoded)


letters = "abcXYZ019éÜßñøłжΩя北京한שعナ"
token = st.one_of(
    st.text(st.sampled_from(letters), min_size=1, max_size=9),
    st.text(st.sampled_from("aeouAEOUsn"), min_size=1, max_size=6).map(
        lambda word: "".join(letter + "\u0308" for letter in word)
    ),
    st.sampled_from(
        ["#LFC", "@user", "U.S.", "O'Neill", "AT&T", "Jean-Luc", "...", "’s", "👍🏽", "👩\u200d👧", "$5"]
    ),
)


@settings(max_examples=200, deadline=None)
@given(st.lists(token, min_size=1, max_size=8), st.data())
@example(["Be\u0301atrice", "in", "Malmo\u0308"], None)
def test_gold_spans_of_whole_tokens_come_back_exactly(tokens: list[str], data: st.DataObject | None) -> None:
    text = " ".join(tokens)
    encoder = text_encoder(max_length=256)
    encoded = encoder.encode(text)
    last = len(tokens) - 1
    first_token = 0 if data is None else data.draw(st.integers(0, last))
    last_token = last if data is None else data.draw(st.integers(first_token, last))
    start = sum(len(word) + 1 for word in tokens[:first_token])
    end = start + len(" ".join(tokens[first_token : last_token + 1]))
    pieces = encoded.piece_span(Span(start, end, "PER"))
    assert pieces is not None
    i, j = pieces
    assert (encoded.starts[i], encoded.ends[j]) == (start, end)
    assert encoded.begins_word[i]
    assert encoded.ends_word[j]


def test_a_span_behind_the_cut_is_lost_and_one_before_it_is_not() -> None:
    text = "word " * 200
    encoded = text_encoder().encode(text)
    assert encoded.truncated
    end = encoded.ends[-1]
    assert encoded.piece_span(Span(0, 4, "PER")) == (0, 0)
    last = len(encoded.token_ids) - 1
    assert encoded.piece_span(Span(end - 4, end, "PER")) == (last, last)
    assert encoded.piece_span(Span(end - 4, end + 5, "PER")) is None
    assert encoded.piece_span(Span(end + 1, end + 5, "PER")) is None


def test_a_word_cut_in_two_does_not_end() -> None:
    encoder = text_encoder()
    encoded = encoder.encode("xqzj" * 24)
    assert encoded.truncated
    assert not any(encoded.ends_word)


def test_a_span_of_nothing_readable_is_lost() -> None:
    assert text_encoder().encode("a \0\0 b").piece_span(Span(2, 4, "PER")) is None


def test_a_hundred_thousand_characters_are_cut() -> None:
    encoder = text_encoder()
    encoded = encoder.encode("été " * 25_000)
    assert encoded.truncated
    assert len(encoded.token_ids) == encoder.budget
    exact = encoder.encode("word " * encoder.budget)
    assert (len(exact.token_ids), exact.truncated) == (encoder.budget, False)


MEBI = 2**20
# What stands before, what is repeated up to 16 MiB of UTF-8, and what stands behind.
LONG = {
    "words": ("Hugo Marchetti ", "wow! ", ""),
    "no blank": ("", "x", ""),
    "blanks before": ("", "\n", "Ada"),
    "blanks behind": ("Ada", " ", ""),
    "nothing visible": ("", "\u200b", ""),
    "emoji": ("", "🔥", ""),
    "Chinese": ("", "北京", ""),
    "marks": ("a", "\u0301", ""),
    "joiners": ("", "a\u200d", ""),
    "keycaps": ("", "1️⃣", ""),
    "a symbol each": ("", "a™", ""),
}


@pytest.mark.parametrize("name", LONG)
def test_a_text_is_cut_before_it_is_tokenised(name: str, tokenised: list[int]) -> None:
    """16 MiB took 49 s and 4.3 GiB before."""
    (before, part, behind), encoder = LONG[name], text_encoder()
    text = before + part * (16 * MEBI // len(part.encode())) + behind
    with peak_memory() as peak:
        encoded = encoder.encode(text)
    assert sum(tokenised) < 100_000
    assert peak.more < 100 * MEBI
    assert len(encoded.token_ids) <= encoder.budget
    short = encoder.encode(text[:20_000].strip() or text[-3:])
    if "blanks" in name:
        assert (encoded.truncated, encoded.text_read) == (False, len(text))
        assert text[encoded.starts[0] : encoded.ends[-1]] == "Ada"
    elif name == "nothing visible":
        assert (encoded.token_ids, encoded.truncated, encoded.text_read) == ([], False, len(text))
    else:
        assert encoded.truncated
        assert 0 < encoded.text_read < 100_000
        # Nothing is read that a shorter text with the same beginning would not give.
        assert encoded.token_ids[: len(short.token_ids)] == short.token_ids


@settings(max_examples=60, deadline=None)
@given(st.text(st.sampled_from("ab ,🔥é\u0301北\x0b\u200d™"), max_size=60), st.integers(0, 3))
def test_the_cut_changes_nothing_before_it(part: str, factor: int) -> None:
    """What is read of a long text is what would be read if all of it were tokenised."""
    text = part * (1 + 40 * factor)
    encoder = text_encoder()
    whole = encoder._pieces(text)
    encoded = encoder.encode(text)
    assert encoded.token_ids == whole.ids[: encoder.budget]
    assert encoded.text_read == (encoded.ends[-1] if encoded.truncated else len(text))


def test_what_is_read_of_a_text() -> None:
    encoder = text_encoder()
    for text in ("", "  ", "Ada in Oslo", "Ada  "):
        assert (encoder.encode(text).text_read, encoder.encode(text).truncated) == (len(text), False)
    full = "word " * encoder.budget
    assert (encoder.encode(full).text_read, encoder.encode(full).truncated) == (len(full), False)
    longer = encoder.encode(full + "Ada")
    assert (longer.text_read, longer.truncated, longer.status) == (len(full) - 1, True, "truncated")


@settings(max_examples=60, deadline=None)
@given(st.text(st.sampled_from("abc  .🔥é\u0301北\n\x0b\u200d™"), max_size=80), st.integers(1, 40))
def test_windows_cover_a_text(part: str, times: int) -> None:
    text, encoder = part * times, text_encoder()
    windows = encoder.windows(text, 10_000)
    read = 0
    for number, window in enumerate(windows):
        check(text, window)
        assert window.truncated is (number < len(windows) - 1)
        if window.starts:
            assert set(kinds(text[read : window.starts[0]])) <= {" ", "j", "m"}, "something is skipped"
        assert window.text_read > read or not text
        read = window.text_read
    assert read == len(text)
    for most in (1, 2):
        assert encoder.windows(text, most) == windows[:most]


def test_windows_overlap_by_a_quarter_and_start_with_a_word() -> None:
    encoder = text_encoder()
    text = " ".join(f"alpha{number} beta," for number in range(200))
    windows = encoder.windows(text, 100)
    assert len(windows) > 5
    for before, after in pairwise(windows):
        shared = sum(start >= after.starts[0] for start in before.starts)
        assert encoder.budget // 4 <= shared <= encoder.budget // 4 + 8
        assert after.begins_word[0]
        assert after.starts[0] in [
            start for start, begins in zip(before.starts, before.begins_word, strict=True) if begins
        ]


def test_a_word_that_goes_on_in_the_next_window_does_not_begin_there() -> None:
    encoder = TextEncoder(tokenizer=family_tokenizer("roberta"), queries=QUERIES, max_length=64)
    first, second, *_ = encoder.windows("x" * 1000, 5)
    assert (first.begins_word[0], second.begins_word[0]) == (True, False)
    assert not any(first.ends_word + second.ends_word)


@pytest.mark.parametrize("style", sorted(QUERY_STYLES))
def test_only_the_sentence_is_cut(style: str) -> None:
    encoder = text_encoder(QUERY_STYLES[style], 64)
    longest = max(len(ids) for ids in encoder.query_ids)
    assert encoder.budget + longest + 3 == 64
    for query, ids in zip(encoder.queries, encoder.query_ids, strict=True):
        assert ids == tokenizer()(query.query, add_special_tokens=False)["input_ids"]


def test_queries_that_leave_no_room_are_refused() -> None:
    with pytest.raises(
        ModelError, match=r"^the longest query leaves -\d+ pieces .* model.max_length \(64\)$"
    ):
        text_encoder((EntityQuery(type="A", query="very " * 100),), 64)


def test_a_tokenizer_without_offsets_is_refused() -> None:
    class Slow:
        is_fast, name_or_path, cls_token_id, sep_token_id = False, "slow-one", 1, 2

    with pytest.raises(ModelError, match="tokenizer slow-one has no offsets"):
        TextEncoder(tokenizer=Slow(), queries=QUERY_STYLES["keyword"], max_length=64)


def test_normal_forms_agree() -> None:
    text = "Zürich, São Paulo, Málaga"
    decomposed = unicodedata.normalize("NFD", text)
    encoder = text_encoder()
    assert encoder.encode(text).token_ids == encoder.encode(decomposed).token_ids


@pytest.mark.parametrize(
    ("name", "content"),
    [
        *(("tokenizer.json", content) for content in ("", "{}", "[]", "3", "null")),
        *(("config.json", content) for content in ("", "[]", "3", "null")),
    ],
)
def test_a_damaged_tokenizer_is_named(tmp_path: Path, name: str, content: str) -> None:
    text_encoder().save(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    load_tokenizer(str(tmp_path))
    (tmp_path / name).write_text(content)
    with pytest.raises(
        ModelError, match=rf"^no tokenizer at {tmp_path}: \w+: .+; give the name or the undamaged folder"
    ) as caught:
        load_tokenizer(str(tmp_path))
    assert "\n" not in str(caught.value)


def test_a_library_may_fail_without_a_word(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(name: str) -> None:
        raise RuntimeError

    monkeypatch.setattr("transformers.AutoTokenizer.from_pretrained", fail)
    with pytest.raises(ModelError, match=r"^no tokenizer at some/name: RuntimeError: no reason given"):
        load_tokenizer("some/name")


def test_an_encoder_is_a_name_or_a_folder_or_lies_in_a_package() -> None:
    assert resolve_encoder("bert-base-uncased") == "bert-base-uncased"
    with pytest.raises(ModelError, match=r"model\.encoder is 'package:', "):
        resolve_encoder("package:")
    with pytest.raises(
        ModelError, match=r"model\.encoder is 'package:json', which is no model folder: .* config\.json"
    ):
        resolve_encoder("package:json")


@pytest.mark.parametrize("family", TOKENIZERS)
def test_what_was_saved_reads_as_before(family: str, tmp_path: Path) -> None:
    """From the folder, as the model does it, and from the text of its one file, as the tasks do."""
    encoder = TextEncoder(tokenizer=family_tokenizer(family), queries=QUERIES, max_length=96)
    encoder.save(tmp_path)
    saved = TextEncoder(tokenizer=load_tokenizer(str(tmp_path)), queries=QUERIES, max_length=96)
    text = (tmp_path / "tokenizer.json").read_text(encoding="utf-8")
    sent = TextEncoderSource(text, QUERIES, 96).make()
    assert encoder.source.make().windows("Ada (London)", 1) == encoder.windows("Ada (London)", 1)
    # transformers makes some tokenizers anew from their settings, with the normaliser of their family.
    others = (saved, sent) if family in FAMILIES else (sent,)
    assert saved.pad_id == encoder.pad_id
    for other in others:
        assert (other.query_ids, other.budget) == (encoder.query_ids, encoder.budget)
        for one in [*ODDITIES, "Ada (London) met #LFC's fans"]:
            assert other.windows(one, 3) == encoder.windows(one, 3), ascii(one)
        for sentence in (True, False):
            for query in (encoder.query_ids[0], []):
                ours, theirs = (one.frame(query, sentence=sentence) for one in (encoder, other))
                assert ours.before.tolist() == theirs.before.tolist()
                assert ours.behind.tolist() == theirs.behind.tolist()
                assert ours.before_types.tolist() == theirs.before_types.tolist()
