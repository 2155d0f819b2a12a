from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from itertools import combinations
from random import Random

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from mnerqg import boxes
from mnerqg.config import DecodeConfig
from mnerqg.inputs.batch import Batch
from mnerqg.inputs.collate import Collator
from mnerqg.inputs.examples import Example
from mnerqg.inputs.images import Letterbox
from mnerqg.inputs.posts import attach_regions
from mnerqg.inputs.sentences import Sentences
from mnerqg.inputs.text import TextEncoder
from mnerqg.model.answers import Answers, Reduced, _pairs, _pairs_on_device
from mnerqg.model.build import build_collator
from mnerqg.model.decode import Decoder, Seen, without_overlap
from mnerqg.model.heads import MatchLogits
from mnerqg.model.output import Output, SpanLogits
from mnerqg.model.words import WordLogits
from mnerqg.queries import EntityQuery
from mnerqg.schema import Entity, Region, TaggedPost
from tests.builders import (
    QUERIES,
    SIDE,
    TYPES,
    anchors,
    collator,
    small_config,
    text_encoder,
    tokenizer,
    unicode_text,
)
from tests.encoders import TOKENIZERS, family_tokenizer
from tests.inputs.test_borders import glued, pieces_of

NO, YES = -9.0, 9.0


def decoded(
    output: Output, batch: Batch, examples: Sequence[Example], *configs: DecodeConfig
) -> list[list[TaggedPost]]:
    """The answers with each of the configurations, which differ in nothing but the thresholds of spans."""
    reduced = Reduced.of(
        output,
        batch,
        table=torch.from_numpy(anchors().table()),
        most_boxes=1 if configs[0].regions == "one" else 100,
        lowest=min(config.span_threshold for config in configs),
        room=8,
    )
    answers = Answers.of_values(reduced.values, reduced)
    sentences = Sentences.of([example.text for example in examples])
    pictured = np.array([example.letterbox is not None for example in examples])
    seen = [Seen(example.text, example.letterbox, example.phrase_ids) for example in examples]
    found = answers.found(configs, sentences, pictured)
    return [
        Decoder(config=config, types=TYPES)(one, seen) for config, one in zip(configs, found, strict=True)
    ]


def silent(batch: Batch) -> Output:
    """An output that answers nothing."""
    posts, queries, pieces = batch.attention_mask.shape
    none = torch.tensor([YES, NO])
    spans = SpanLogits(
        existence_logits=none.expand(posts, queries, 2).clone(),
        start_logits=none.expand(posts, queries, pieces, 2).clone(),
        end_logits=none.expand(posts, queries, pieces, 2).clone(),
        match=MatchLogits(
            start_share=torch.zeros(posts, queries, pieces, 1),
            end_share=torch.full((posts, queries, pieces, 1), YES),
        ),
    )
    return Output(
        spans=spans,
        box_logits=torch.full((posts, queries, anchors().candidates, 5), NO),
    )


class Sheet:
    """One post whose answers a test writes down by word."""

    def __init__(self, text: str = "one two three four", letterbox: Letterbox | None = None) -> None:
        self.examples = [Example(text_encoder().encode(text), letterbox=letterbox)]
        self.batch = collator()(self.examples, with_targets=False)
        self.output = silent(self.batch)
        self.spans = self.output.spans

    def place(self, query: int, piece: int) -> tuple[int, int, int]:
        return 0, query, int(self.batch.sentence_offset[0, query]) + piece

    def start(self, query: int, piece: int, yes: float = YES) -> None:
        self.spans.start_logits[self.place(query, piece)] = torch.tensor([0, yes])

    def end(self, query: int, piece: int, yes: float = YES) -> None:
        self.spans.end_logits[self.place(query, piece)] = torch.tensor([0, yes])

    def answer(self, query: int, first: int, last: int, yes: float = YES) -> None:
        self.start(query, first, yes)
        self.end(query, last, yes)

    def decode(self, **config: object) -> TaggedPost:
        ((answer,),) = decoded(self.output, self.batch, self.examples, DecodeConfig(**config))
        return answer

    def found(self, **config: object) -> list[tuple[str, str]]:
        return [(entity.text, entity.type) for entity in self.decode(**config).entities]


def sigmoid(logit: float) -> float:
    return float(torch.tensor(logit).sigmoid())


def test_silence() -> None:
    answer = Sheet().decode()
    assert (answer.entities, answer.best_regions) == ((), ())
    assert dict(answer.existence) == pytest.approx(dict.fromkeys(TYPES, sigmoid(-18)))


def test_an_entity_and_its_score() -> None:
    sheet = Sheet()
    sheet.start(1, 1, 2.0)
    sheet.end(1, 2, 1.0)
    sheet.spans.match.start_share[sheet.place(1, 1)] = 1.5
    sheet.spans.match.end_share[sheet.place(1, 2)] = -0.5
    (entity,) = sheet.decode().entities
    assert (entity.text, entity.start, entity.end, entity.type) == ("two three", 4, 13, "LOC")
    assert entity.score == pytest.approx(sigmoid(2.0) * sigmoid(1.0) * sigmoid(1.0))


@pytest.mark.parametrize(("threshold", "count"), [(0.7, 1), (0.74, 0)])
def test_span_threshold(threshold: float, count: int) -> None:
    sheet = Sheet()
    sheet.answer(0, 0, 0, 1.0)  # 0.731
    assert len(sheet.decode(span_threshold=threshold).entities) == count


@pytest.mark.parametrize(("threshold", "count"), [(0.7, 1), (0.74, 0)])
def test_match_threshold(threshold: float, count: int) -> None:
    sheet = Sheet()
    sheet.answer(0, 0, 0)
    sheet.spans.match.end_share[:] = 1.0
    assert len(sheet.decode(match_threshold=threshold).entities) == count


def test_a_hidden_layer_is_asked_for_the_pairs_above_the_lowest_threshold() -> None:
    torch.manual_seed(0)
    sheet = Sheet()
    width = 5
    hidden = torch.nn.Linear(width, 1)
    shape = (*sheet.batch.attention_mask.shape, width)
    match = MatchLogits(torch.randn(shape), torch.randn(shape), hidden)
    sheet.output = replace(sheet.output, spans=replace(sheet.spans, match=match))
    sheet.start(2, 0, 1.0)
    sheet.answer(2, 1, 2, 3.0)
    configs = [
        DecodeConfig(span_threshold=at, match_threshold=0, overlap="across_types") for at in (0.9, 0.5, 0.99)
    ]
    found = decoded(sheet.output, sheet.batch, sheet.examples, *configs)
    assert [[entity.text for entity in post.entities] for (post,) in found] in (
        [["two three"], ["two three"], []],
        [["two three"], ["one two three"], []],
    )
    places = [sheet.place(2, piece) for piece in (1, 2)]
    logit = match.at(torch.tensor([[*places[0], places[1][2]]])).item()
    assert found[0][0].entities[0].score == pytest.approx(sigmoid(3.0) ** 2 * sigmoid(logit))


@given(
    hnp.arrays(bool, st.tuples(*[st.integers(1, 4)] * 3).map(lambda shape: (2, *shape))),
    st.integers(0, 40),
)
@settings(max_examples=200, deadline=None)
def test_pairs_that_a_device_finds_are_those_the_host_finds(masks: NDArray[np.bool_], room: int) -> None:
    """Whatever the room was at first; as often as there is more to find, it says for how many."""
    starts, ends = masks
    expected = _pairs(starts, ends)
    while True:
        pairs, needed = _pairs_on_device(torch.from_numpy(starts), torch.from_numpy(ends), room)
        assert pairs.shape == (room, 4)
        if needed <= room:
            break
        room = int(needed)
    found = pairs[pairs[:, 0] >= 0]
    np.testing.assert_array_equal(found, expected)
    assert (pairs[len(found) :] == -1).all()


def test_what_is_left_of_an_output_is_small() -> None:
    """No candidate, no state and no tensor is among it."""
    sheet = with_box((16, 24, 48, 40), 2.0)
    sheet.answer(0, 0, 1, 2.0)
    table = torch.from_numpy(anchors().table())
    reduced = Reduced.of(sheet.output, sheet.batch, table=table, most_boxes=1, lowest=0.5, room=0)
    answers = Answers.of_values(reduced.values, reduced)
    arrays = [value for value in vars(answers).values() if isinstance(value, np.ndarray)]
    arrays += list(vars(answers.spans).values())
    assert all(isinstance(array, np.ndarray) for array in arrays)
    posts, queries, pieces = sheet.batch.attention_mask.shape
    assert sum(array.size for array in arrays) == posts * queries * (4 * pieces + 1 + 5)


def test_a_lone_start_or_end_is_nothing() -> None:
    sheet = Sheet()
    sheet.start(0, 1)
    sheet.end(1, 1)
    assert sheet.found() == []


def test_an_end_before_its_start_is_nothing() -> None:
    sheet = Sheet()
    sheet.answer(0, 2, 1)
    assert sheet.found() == []


def test_padding_query_and_inner_pieces_are_never_entities() -> None:
    sheet = Sheet("Pneumonoultramicroscopic x")
    sheet.spans.start_logits[:] = torch.tensor([NO, YES])
    sheet.spans.end_logits[:] = torch.tensor([NO, YES])
    whole = {"Pneumonoultramicroscopic", "x", "Pneumonoultramicroscopic x"}
    assert {text for text, _ in sheet.found(overlap="across_types")} <= whole


def test_flat_keeps_the_better_of_two_types() -> None:
    sheet = Sheet()
    sheet.answer(0, 0, 1, 3.0)
    sheet.answer(2, 1, 2, 4.0)
    sheet.answer(3, 3, 3, 1.0)
    assert sheet.found() == [("two three", "ORG"), ("four", "OTHER")]
    assert sheet.found(overlap="across_types") == [
        ("one two", "PER"),
        ("two three", "ORG"),
        ("four", "OTHER"),
    ]


@pytest.mark.parametrize("overlap", ["flat", "across_types"])
def test_a_type_never_overlaps_itself(overlap: str) -> None:
    sheet = Sheet()
    sheet.answer(0, 0, 2, 3.0)
    sheet.answer(0, 1, 1, 5.0)
    assert sheet.found(overlap=overlap) == [("two", "PER")]


def test_two_names_are_not_one_from_the_first_to_the_last_word() -> None:
    """Before, the surest came first: of "Bill Clinton dissects Donald Trump" a trained model found the whole."""
    names = [Entity("", 0, 2, "PER", 0.8), Entity("", 4, 6, "PER", 0.7)]
    both = Entity("", 0, 6, "PER", 0.9)
    resolve = Decoder(config=DecodeConfig(), types=TYPES).resolve
    assert list(resolve([*names, both])) == names
    assert list(resolve([names[0], both])) == [both]


a_candidate = st.builds(
    lambda start, length, kind, score: Entity("", start, start + length, kind, score),
    st.integers(0, 12),
    st.integers(1, 6),
    st.sampled_from(TYPES),
    st.sampled_from([0.25, 0.5, 0.75, 1.0]),  # whose sums are exact
)


def overlaps(one: Entity, other: Entity) -> bool:
    return one.start < other.end and other.start < one.end


@settings(max_examples=200, deadline=None)
@given(st.lists(a_candidate, max_size=7), st.randoms(use_true_random=False))
def test_what_is_kept_has_the_largest_sum_of_scores(candidates: list[Entity], random: Random) -> None:
    kept = without_overlap(candidates)
    assert not any(overlaps(*pair) for pair in combinations(kept, 2))
    assert not Counter(kept) - Counter(candidates)
    subsets = (some for size in range(8) for some in combinations(candidates, size))
    largest = max(
        sum(entity.score for entity in some)
        for some in subsets
        if not any(overlaps(*pair) for pair in combinations(some, 2))
    )
    assert sum(entity.score for entity in kept) == largest
    random.shuffle(candidates)
    assert without_overlap(candidates) == kept


@settings(max_examples=50, deadline=None)
@given(st.lists(a_candidate, max_size=7))
def test_in_the_paper_s_way_a_type_does_not_know_of_the_others(candidates: list[Entity]) -> None:
    resolve = Decoder(config=DecodeConfig(overlap="across_types"), types=TYPES).resolve
    of_types = [without_overlap(one for one in candidates if one.type == kind) for kind in TYPES]
    assert Counter(resolve(candidates)) == Counter(entity for some in of_types for entity in some)


def test_neighbours_do_not_overlap() -> None:
    sheet = Sheet("北京東京")
    sheet.answer(1, 0, 1, 3.0)
    sheet.answer(0, 2, 3, 4.0)
    sheet.spans.match.end_share[:] = YES
    assert sheet.found() == [("北京", "LOC"), ("東京", "PER")]


def test_existence_is_reported_and_is_no_gate() -> None:
    sheet = Sheet()
    sheet.answer(0, 0, 0)
    sheet.spans.existence_logits[0, 1] = torch.tensor([0.0, 2.0])
    answer = sheet.decode()
    assert len(answer.entities) == 1
    assert answer.existence[1] == ("LOC", pytest.approx(sigmoid(2.0)))


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(TOKENIZERS),
    st.lists(unicode_text, min_size=1, max_size=3),
    st.integers(0, 2**31),
    st.sampled_from([0.2, 1.0, 4.0]),
)
def test_offsets_reproduce_the_text_whatever_it_is(
    family: str, texts: list[str], seed: int, scale: float
) -> None:
    encoder = TextEncoder(tokenizer=family_tokenizer(family), queries=QUERIES, max_length=96)
    examples = [Example(window) for text in texts for window in encoder.windows(text, 2)]
    texts = [example.text.text for example in examples]
    batch = Collator(text_encoder=encoder, anchors=anchors(), ignore_iou=0.5)(examples, with_targets=False)
    torch.manual_seed(seed)
    output = silent(batch)
    spans = output.spans
    for logits in (spans.start_logits, spans.end_logits, spans.match.start_share, spans.match.end_share):
        logits.normal_(std=scale)
    for overlap in ("flat", "across_types"):
        (answers,) = decoded(output, batch, examples, DecodeConfig(overlap=overlap))
        for text, answer in zip(texts, answers, strict=True):
            taken: list[Entity] = []
            for entity in answer.entities:
                assert 0 <= entity.start < entity.end <= len(text)
                assert text[entity.start : entity.end] == entity.text
                assert not entity.text[0].isspace()
                assert not entity.text[-1].isspace()
                assert 0.125 <= entity.score <= 1
                for other in taken:
                    if overlap == "flat" or other.type == entity.type:
                        assert other.end <= entity.start or entity.end <= other.start
                taken.append(entity)
            assert answer.best_regions == ()


@settings(max_examples=30, deadline=None)
@given(st.sampled_from(TOKENIZERS), st.lists(unicode_text, min_size=1, max_size=3), st.integers(0, 2**31))
def test_so_do_those_of_the_baselines(family: str, texts: list[str], seed: int) -> None:
    encoder = TextEncoder(tokenizer=family_tokenizer(family), queries=QUERIES, max_length=96)
    examples = [Example(encoder.encode(text)) for text in texts]
    config = small_config(tagger="bio", inputs="text", grounding=False)
    batch = build_collator(config, encoder)(examples, with_targets=False)
    torch.manual_seed(seed)
    logits = torch.randn(*batch.begins_word[:, 0].shape, 9)
    (answers,) = decoded(Output(words=WordLogits(logits)), batch, examples, DecodeConfig())
    for text, answer in zip(texts, answers, strict=True):
        for entity in answer.entities:
            assert text[entity.start : entity.end] == entity.text == entity.text.strip() != ""


@pytest.mark.parametrize("family", TOKENIZERS)
def test_a_glued_name_comes_out_alone(family: str) -> None:
    """With scores of a model that knows it all."""
    encoder = TextEncoder(tokenizer=family_tokenizer(family), queries=QUERIES, max_length=128)
    texts = glued()
    examples = [Example(encoder.encode(text)) for text, _ in texts]
    batch = Collator(text_encoder=encoder, anchors=anchors(), ignore_iou=0.5)(examples, with_targets=False)
    output = silent(batch)
    for p, (example, (_, span)) in enumerate(zip(examples, texts, strict=True)):
        pieces = pieces_of(example.text, span)
        assert pieces is not None
        first, last = (int(batch.sentence_offset[p, 0]) + piece for piece in pieces)
        output.spans.start_logits[p, 0, first] = output.spans.end_logits[p, 0, last] = torch.tensor([NO, YES])
    (answers,) = decoded(output, batch, examples, DecodeConfig())
    for (text, span), answer in zip(texts, answers, strict=True):
        (entity,) = answer.entities
        assert (entity.start, entity.end) == (span.start, span.end), ascii(text)
        assert entity.text == text[span.start : span.end]


def with_box(corners: tuple[float, ...], confidence: float, query: int = 1) -> Sheet:
    """A post with a picture of 200 x 100 and one box on the canvas of 64."""
    sheet = Sheet(letterbox=Letterbox(200, 100, SIDE))
    assignment = boxes.assign(np.asarray(corners, np.float32), anchors(), 0.5)
    assert assignment is not None
    target = torch.tensor(assignment.target)
    target[:2] = target[:2].logit(eps=1e-6)
    sheet.output.box_logits[0, query, assignment.candidate] = torch.cat([target, torch.tensor([confidence])])
    return sheet


def test_a_region_in_pixels_of_the_picture() -> None:
    sheet = with_box((16, 24, 48, 40), 2.0)
    answer = sheet.decode()
    assert [region.type for region in answer.best_regions] == list(TYPES)
    best = answer.best_regions[1]
    assert best.xyxy_px == pytest.approx((50, 25, 150, 75), abs=0.05)
    assert best.score == pytest.approx(sigmoid(2.0))
    assert answer.regions == (best,)
    assert sheet.decode(region_threshold=0.9).regions == ()
    assert len(sheet.decode(region_threshold=0).regions) >= 1


def test_regions_are_cut_to_the_picture() -> None:
    answer = with_box((0, 0, 64, 64), 3.0).decode()  # the picture's part of the canvas is (0, 16, 64, 48)
    assert answer.best_regions[1].xyxy_px == pytest.approx((0, 0, 200, 100), abs=0.05)


def test_a_region_wholly_beside_the_picture_is_none() -> None:
    answer = with_box((10, 0, 40, 12), 3.0).decode(region_threshold=0)
    assert answer.regions == tuple(
        region
        for region in answer.best_regions
        if region.y_max > region.y_min and region.x_max > region.x_min
    )
    assert TYPES[1] not in {region.type for region in answer.regions}


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 3000), st.integers(1, 3000), st.integers(0, 2**31))
def test_every_region_lies_within_its_picture(width: int, height: int, seed: int) -> None:
    sheet = Sheet("x", Letterbox(width, height, SIDE))
    torch.manual_seed(seed)
    sheet.output.box_logits[:] = 5 * torch.randn_like(sheet.output.box_logits)
    for region in sheet.decode(region_threshold=0).regions:
        assert 0 <= region.x_min < region.x_max <= width
        assert 0 <= region.y_min < region.y_max <= height


def test_entities_point_to_the_region_of_their_type() -> None:
    entities = [Entity("a", 0, 1, "PER", 0.9), Entity("b", 2, 3, "LOC", 0.8), Entity("c", 4, 5, "PER", 0.7)]
    regions = [Region("ORG", 0, 0, 1, 1, 0.9), Region("PER", 1, 1, 2, 2, 0.9)]
    assert [entity.region for entity in attach_regions(entities, regions)] == [1, None, 1]


def test_several_regions_of_a_query() -> None:
    """Two boxes far apart are both kept, of two that overlap the surer one, and none below the threshold."""
    sheet = with_box((4, 20, 20, 40), 3.0)
    for corners, confidence in (((8, 20, 24, 40), 2.0), ((40, 20, 60, 44), 1.0), ((30, 20, 34, 26), -2.0)):
        other = with_box(corners, confidence).output.box_logits
        place = other[0, 1, :, 4].argmax()
        sheet.output.box_logits[0, 1, place] = other[0, 1, place]
    one, several = sheet.decode(), sheet.decode(regions="several")
    assert [region.score for region in one.regions] == pytest.approx([sigmoid(3.0)])
    assert [region.score for region in several.regions] == pytest.approx([sigmoid(3.0), sigmoid(1.0)])
    assert {region.type for region in several.regions} == {TYPES[1]}
    assert one.best_regions == several.best_regions
    assert len(sheet.decode(regions="several", nms_iou=0.95).regions) == 3


def test_a_post_with_phrases_is_answered_by_phrase() -> None:
    sheet = with_box((16, 24, 48, 40), 2.0, query=1)
    sheet.examples = [replace(sheet.examples[0], phrase_ids=("7", "8"))]
    answer = sheet.decode()
    assert [region.type for region in answer.best_regions] == ["7", "8"]
    assert [region.type for region in answer.regions] == ["8"]


def test_a_baseline_finds_an_entity_in_a_word_that_was_cut() -> None:
    encoder = TextEncoder(tokenizer=tokenizer(), queries=(EntityQuery(type="PER", query="x"),), max_length=32)
    text = "a " * (encoder.budget - 1) + "Schwarzenegger"
    cut = encoder.encode(text)
    assert cut.truncated
    assert (cut.begins_word[-1], cut.ends_word[-1]) == (True, False)
    config = small_config(tagger="bio", inputs="text", grounding=False)
    examples = [Example(cut)]
    batch = build_collator(config, encoder)(examples, with_targets=False)
    logits = torch.zeros(*batch.attention_mask[:, 0].shape, 9)
    logits[0, : encoder.budget, 0] = 9.0  # O
    logits[0, encoder.budget, 1] = 9.0  # B-PER at the last word's first piece: [CLS] is the piece 0
    ((answer,),) = decoded(Output(words=WordLogits(logits)), batch, examples, DecodeConfig())
    (entity,) = answer.entities
    assert (entity.start, entity.end) == (2 * (encoder.budget - 1), cut.ends[-1])
    assert text[entity.start : entity.end] == entity.text
