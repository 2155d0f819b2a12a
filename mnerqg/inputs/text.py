"""From a post's text to word pieces with character offsets, and back from gold spans to pieces.

A sentence is tokenised once a post; the K queries are laid before it when a batch is built, as the tokenizer lays
pairs (`inputs.pairs`). Offsets are code points of the original text.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer

from mnerqg.config import ModelConfig
from mnerqg.errors import ModelError
from mnerqg.inputs.borders import split_at_borders, with_marks, without_blanks, word_borders
from mnerqg.inputs.pairs import PairTemplate, Row
from mnerqg.io.packages import is_package, package_path
from mnerqg.queries import EntityQuery
from mnerqg.schema import Span, TextStatus

# A lone surrogate is a valid Python character that no UTF-8 text can hold and the tokeniser refuses.
_SURROGATE = re.compile("[\ud800-\udfff]")


@dataclass(frozen=True, slots=True)
class EncodedText:
    """One sentence and its pieces, cut to what fits beside the longest query; `text` is whole.

    All lists have one entry a piece. `starts` and `ends` are code points of the text, end exclusive;
    `begins_word` and `ends_word` mark the only places where an entity may begin or end. A piece that is nothing but
    blanks is empty, stands at the end of the piece before it, and neither begins nor ends a word.
    """

    text: str
    token_ids: list[int]
    starts: list[int]
    ends: list[int]
    begins_word: list[bool]
    ends_word: list[bool]
    truncated: bool

    @property
    def status(self) -> TextStatus:
        """What tagging says of the text."""
        if not self.text.strip():
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
        tokenizer: as `load_tokenizer` gives it.
        queries: the K queries.
        max_length: pieces of query, sentence and the tokenizer's special ones together.

    Raises:
        ModelError: a tokenizer without offsets or without a way to lay pairs, or queries that leave no room for text.
    """

    def __init__(self, *, tokenizer: Any, queries: Sequence[EntityQuery], max_length: int) -> None:
        self._template = PairTemplate.of(tokenizer)
        self._tokenizer = tokenizer
        self.queries = tuple(queries)
        self.max_length = max_length
        self.pad_id: int = tokenizer.pad_token_id or 0
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
        ids: list[int] = self._tokenizer(
            query, add_special_tokens=False, split_special_tokens=True, verbose=False
        )["input_ids"]
        return ids[: self._template.room_alone(self.max_length)]

    def encode(self, text: str) -> EncodedText:
        """Tokenise one sentence; never fails, whatever the text."""
        encoding = self._tokenizer(
            _SURROGATE.sub("�", text),
            add_special_tokens=False,
            split_special_tokens=True,  # a post that spells "[SEP]" has none
            return_offsets_mapping=True,
            verbose=False,
        )
        cut = slice(self.budget + 1)  # one more, for it says whether a word ends before it
        ids: list[int] = encoding["input_ids"]
        words: list[int] = encoding.word_ids()[cut]
        offsets: list[tuple[int, int]] = encoding["offset_mapping"][cut]
        limits = [*(start for start, _ in offsets[1:]), len(text)]
        starts: list[int] = []
        ends: list[int] = []
        filled: list[int] = []
        for index, ((raw_start, raw_end), limit) in enumerate(zip(offsets, limits, strict=False)):
            start, end = without_blanks(text, raw_start, with_marks(text, raw_end, limit))
            if start < end:
                filled.append(index)
            else:
                start = end = ends[-1] if ends else 0
            starts.append(start)
            ends.append(end)
        borders = word_borders(
            text,
            [starts[index] for index in filled],
            [ends[index] for index in filled],
            [words[index] for index in filled],
        )
        begins, finishes = [False] * len(starts), [False] * len(starts)
        for index, begins_here, ends_here in zip(filled, borders, borders[1:], strict=False):
            begins[index], finishes[index] = begins_here, ends_here
        cut = slice(self.budget)
        return EncodedText(
            text,
            ids[cut],
            starts[cut],
            ends[cut],
            begins[cut],
            finishes[cut],
            truncated=len(ids) > self.budget,
        )

    def lay(self, query: list[int], sentence: list[int] | None) -> Row:
        """What the encoder reads of the pieces of a query and a sentence; see `PairTemplate.lay`."""
        return self._template.lay(query, sentence)

    def save(self, directory: Path) -> None:
        """Write the tokenizer files."""
        self._tokenizer.save_pretrained(directory)


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
    try:
        tokenizer = AutoTokenizer.from_pretrained(name)
        if tokenizer.is_fast:
            split_at_borders(tokenizer)
        return tokenizer
    except Exception as error:  # a damaged tokenizer.json is a KeyError, a TypeError or a bare Exception
        raise ModelError(
            f"no tokenizer at {name}: {first_line(error)}; give the name or the undamaged folder of an encoder"
        ) from None


def first_line(error: Exception) -> str:
    """The kind of a library's error and what its long message says at its beginning."""
    lines = str(error).strip().splitlines() or ["no reason given"]
    return f"{type(error).__name__}: {lines[0]}"
