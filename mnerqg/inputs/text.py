"""From a post's text to word pieces with character offsets, and back from gold spans to pieces.

A sentence is tokenised once a post; the K queries are laid before it when a batch is built, as the tokenizer lays
pairs (`inputs.pairs`). Offsets are code points of the original text.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

from tokenizers import Encoding, Tokenizer

from mnerqg.config import ModelConfig
from mnerqg.errors import ModelError
from mnerqg.inputs.borders import (
    INK,
    closed_edges,
    kinds,
    readable,
    split_at_borders,
    trimmed,
    word_borders,
    word_edges,
)
from mnerqg.inputs.pairs import OTHER_FAMILY, Frame, PairTemplate
from mnerqg.io.packages import is_package, package_path
from mnerqg.queries import EntityQuery
from mnerqg.schema import Span, TextStatus

# A lone surrogate is a valid Python character that no UTF-8 text can hold and the tokeniser refuses.
_SURROGATE = re.compile("[\ud800-\udfff]")
# How much of a text is tokenised for each piece that is wanted; where that gives too few, four times as much and so on.
# Texts of all kinds have 1 to 6 code points a piece; more have those that are mostly blanks, or words that are none.
_CODE_POINTS_A_PIECE = (8, 32, 128, 512)
_MARGIN_CODE_POINTS = 256
_MARGIN_PIECES = 16  # a word whose end is cut off may be read as other pieces
_OVERLAP = 4  # a window shares this part of its pieces with the one before: 1 of 4 [chosen]


@dataclass(frozen=True, slots=True)
class EncodedText:
    """One sentence and its pieces, cut to what fits beside the longest query; `text` is whole.

    All lists have one entry a piece. `starts` and `ends` are code points of the text, end exclusive;
    `begins_word` and `ends_word` mark the only places where an entity may begin or end. A piece that is nothing but
    blanks is empty, stands at the end of the piece before it, and neither begins nor ends a word. `text_read` is how
    many code points have been read from the text's beginning on; `truncated` says that more than blanks follow.
    """

    text: str
    token_ids: list[int]
    starts: list[int]
    ends: list[int]
    begins_word: list[bool]
    ends_word: list[bool]
    text_read: int
    truncated: bool

    @property
    def status(self) -> TextStatus:
        """What tagging says of the text."""
        if not self.text or self.text.isspace():  # no copy is made of a long text
            return "empty"
        return "truncated" if self.truncated else "ok"

    def piece_span(self, span: Span) -> tuple[int, int] | None:
        """First and last piece (inclusive) that overlap a gold span, None where the text was cut before."""
        pieces = [
            index
            for index, (start, end) in enumerate(zip(self.starts, self.ends, strict=True))
            if start < span.end and end > span.start
        ]
        if not pieces or (self.truncated and pieces[-1] == len(self.ends) - 1 and self.ends[-1] < span.end):
            return None
        return pieces[0], pieces[-1]


class TextEncoder:
    """Tokenises sentences and queries with a fast tokenizer of an encoder of `transformers`.

    Args:
        tokenizer: as `load_tokenizer` gives it; or what is within it, which reads texts and is not to be saved.
        queries: the K queries.
        max_length: pieces of query, sentence and the tokenizer's special ones together.

    Raises:
        ModelError: a tokenizer without offsets or without a way to lay pairs, or queries that leave no room for text.
    """

    def __init__(self, *, tokenizer: Any, queries: Sequence[EntityQuery], max_length: int) -> None:
        self._tokenizer = tokenizer
        # transformers' own call takes longer around the tokenizer than in it.
        self._backend = tokenizer if isinstance(tokenizer, Tokenizer) else _within(tokenizer)
        self._backend.no_padding()
        self._backend.no_truncation()
        self._template = PairTemplate.of(self._backend, getattr(tokenizer, "name_or_path", ""))
        self._backend.encode_special_tokens = True  # a post that spells "[SEP]" has none
        self.queries = tuple(queries)
        self.max_length = max_length
        self.pad_id: int = getattr(tokenizer, "pad_token_id", None) or 0
        self.budget = self._template.room(max_length) - max(len(ids) for ids in self.query_ids)
        if self.budget < 16:
            raise ModelError(
                f"the longest query leaves {self.budget} pieces for the sentence; "
                f"shorten it or raise model.max_length ({max_length})"
            )

    @cached_property
    def query_ids(self) -> tuple[list[int], ...]:
        """The pieces of each query, without special tokens."""
        return tuple(self.encode_query(query.query) for query in self.queries)

    def encode_query(self, query: str) -> list[int]:
        """The pieces of one query, without special tokens; cut to `max_length`."""
        ids: list[int] = self._tokenize(query).ids
        return ids[: self._template.room_alone(self.max_length)]

    def encode(self, text: str) -> EncodedText:
        """Tokenise one sentence, or of a long text its beginning; never fails, whatever the text."""
        return self.windows(text, 1)[0]

    def windows(self, text: str, most: int) -> list[EncodedText]:
        """Tokenise a text in windows that overlap by a quarter of their pieces, at most `most` of them, at least one.

        Each has the whole text, offsets in it and, unless it reaches the text's end, `truncated`. Time and memory are
        bounded by `most`, whatever the text holds.
        """
        windows: list[EncodedText] = []
        start, begins = 0, True
        while True:
            windows.append(self._window(text, start, begins=begins))
            if not windows[-1].truncated or len(windows) == most:
                return windows
            start, begins = self._next(windows[-1])

    def _window(self, text: str, start: int, *, begins: bool) -> EncodedText:
        """What fits of the text from `start` on; `begins`: a word, there."""
        ink = INK.search(text, start)
        start = ink.start() if ink else len(text)
        if start and text[start - 1].isspace():
            start -= 1  # some tokenizers have other pieces for a word behind a blank
        for each in _CODE_POINTS_A_PIECE:
            stop = _cut(text, start, each * self.budget + _MARGIN_CODE_POINTS)
            pieces = self._pieces(text[start:stop])
            if stop == len(text) or len(pieces.ids) > self.budget + _MARGIN_PIECES:
                break
        if pieces.borders:
            pieces.borders[0] = begins or text[start].isspace()
            pieces.borders[-1] = stop == len(text) or text[stop].isspace()
        begins_word, ends_word = [False] * len(pieces.ids), [False] * len(pieces.ids)
        for index, begins_here, ends_here in zip(
            pieces.filled, pieces.borders, pieces.borders[1:], strict=False
        ):
            begins_word[index], ends_word[index] = begins_here, ends_here
        cut = slice(self.budget)
        starts = [start + offset for offset, _ in pieces.offsets[cut]]
        ends = [start + offset for _, offset in pieces.offsets[cut]]
        read = ends[-1] if len(pieces.ids) > self.budget and ends[-1] > start else stop
        truncated = INK.search(text, read) is not None
        return EncodedText(
            text,
            pieces.ids[cut],
            starts,
            ends,
            begins_word[cut],
            ends_word[cut],
            text_read=read if truncated else len(text),
            truncated=truncated,
        )

    def _next(self, window: EncodedText) -> tuple[int, bool]:
        """Where the window after a truncated one starts, and whether a word begins there."""
        if len(window.token_ids) == self.budget:
            first = self.budget - self.budget // _OVERLAP
            for index in range(first, first // 2, -1):
                if window.begins_word[index]:
                    return window.starts[index], True
        return window.text_read, bool(window.ends_word and window.ends_word[-1])

    def _pieces(self, text: str) -> "_Pieces":
        """All of a part of a text, whose offsets begin at 0."""
        text = _SURROGATE.sub("\ufffd", text)
        of_text = kinds(text)
        edges = word_edges(of_text)
        text = readable(text, of_text)
        encoding = self._tokenize(text)
        offsets: list[tuple[int, int]] = encoding.offsets
        words = encoding.word_ids
        if closed := closed_edges(of_text, edges, offsets, words):
            # A blank parts them, in any tokenizer.
            parts = [text[start:end] for start, end in pairwise([0, *sorted(closed), len(text)])]
            encoding = self._tokenize(" ".join(parts))
            places = [place for place in range(len(text) + 1) for _ in range(1 + (place in closed))]
            offsets = [(places[start], places[end]) for start, end in encoding.offsets]
            words = encoding.word_ids
        limits = [*(start for start, _ in offsets[1:]), len(text)]
        filled: list[int] = []
        trimmed_offsets: list[tuple[int, int]] = []
        for index, ((start, end), limit) in enumerate(zip(offsets, limits, strict=False)):
            start, end = trimmed(of_text, start, end, limit)
            if start < end:
                filled.append(index)
            else:
                start = end = trimmed_offsets[-1][1] if trimmed_offsets else 0
            trimmed_offsets.append((start, end))
        borders = word_borders(
            of_text, edges, [trimmed_offsets[index] for index in filled], [words[index] for index in filled]
        )
        return _Pieces(encoding.ids, trimmed_offsets, filled, borders)

    def _tokenize(self, text: str) -> Encoding:
        return self._backend.encode(text, add_special_tokens=False)

    def frame(self, query: list[int], *, sentence: bool) -> Frame:
        """What the encoder reads around a sentence; see `PairTemplate.frame`."""
        return self._template.frame(query, sentence=sentence)

    @property
    def source(self) -> "TextEncoderSource":
        """What it is made of, to be sent to tasks."""
        return TextEncoderSource(self._backend.to_str(), self.queries, self.max_length)

    def save(self, directory: Path) -> None:
        """Write the tokenizer files."""
        self._tokenizer.save_pretrained(directory)


@dataclass(frozen=True, slots=True)
class _Pieces:
    """The pieces of a part of a text: `filled` are those that are not blank, `borders` are `word_borders` of them."""

    ids: list[int]
    offsets: list[tuple[int, int]]
    filled: list[int]
    borders: list[bool]


def _cut(text: str, start: int, size: int) -> int:
    """Where to cut a text `size` code points behind `start`: at a blank, where there is one in the last quarter."""
    stop = start + size
    if stop >= len(text):
        return len(text)
    return next((place for place in range(stop, stop - size // 4, -1) if text[place].isspace()), stop)


def load_text_encoder(config: ModelConfig, queries: Sequence[EntityQuery]) -> TextEncoder:
    """The text encoder of a model configuration.

    Raises:
        ModelError: its tokenizer cannot be had or does not suit.
    """
    tokenizer = load_tokenizer(resolve_encoder(config.encoder))
    return TextEncoder(tokenizer=tokenizer, queries=queries, max_length=config.max_length)


def resolve_encoder(name: str) -> str:
    """A hub name or directory as it is; `package:NAME/PATH` as the directory inside the installed package.

    Raises:
        ModelError: the package is not installed or has no model there.
    """
    if not is_package(name):
        return name
    directory = package_path(name, key="model.encoder")
    if not (directory / "config.json").is_file():
        raise ModelError(
            f"model.encoder is {name!r}, which is no model folder: it has no config.json; name one that has"
        )
    return str(directory)


def load_tokenizer(name: str) -> Any:
    """The fast tokenizer of an encoder (hub name or directory), none of whose pieces span the border of a word.

    Raises:
        ModelError: it cannot be read.
    """
    from transformers import AutoTokenizer  # it brings torch

    try:
        tokenizer = AutoTokenizer.from_pretrained(name)
        if tokenizer.is_fast:
            split_at_borders(tokenizer)
        return tokenizer
    except Exception as error:  # a damaged tokenizer.json is a KeyError, a TypeError or a bare Exception
        raise ModelError(
            f"no tokenizer at {name}: {first_line(error)}; give the name or the undamaged folder of an encoder"
        ) from None


@dataclass(frozen=True)
class TextEncoderSource:
    """All that a text encoder is made of, small enough to send to every task.

    tokenizer: the text of its tokenizer.json. queries, max_length: see `TextEncoder`.
    """

    tokenizer: str
    queries: tuple[EntityQuery, ...]
    max_length: int

    def make(self) -> TextEncoder:
        """The text encoder; of padding it knows nothing, which is the model's."""
        # transformers, which every process of a run would import for seconds, is not needed.
        return TextEncoder(
            tokenizer=Tokenizer.from_str(self.tokenizer), queries=self.queries, max_length=self.max_length
        )


@cache
def shared_text_encoder(source: TextEncoderSource) -> TextEncoder:
    """That of this process, whose tasks are many; for one thread at a time, as its tokenizer is."""
    return source.make()


def _within(tokenizer: Any) -> Tokenizer:
    """The tokenizer within one of transformers.

    Raises:
        ModelError: it has none, and so no offsets.
    """
    if not tokenizer.is_fast:
        raise ModelError(
            f"tokenizer {tokenizer.name_or_path} has no offsets, for it is no fast one; {OTHER_FAMILY}"
        )
    backend: Tokenizer = tokenizer.backend_tokenizer
    return backend


def first_line(error: Exception) -> str:
    """The kind of a library's error and what its long message says at its beginning."""
    lines = str(error).strip().splitlines() or ["no reason given"]
    return f"{type(error).__name__}: {lines[0]}"
