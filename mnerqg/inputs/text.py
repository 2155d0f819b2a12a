"""From a post's text to word pieces with character offsets, and back from gold spans to pieces.

A sentence is tokenised once a post; the K queries are laid before it when a batch is built
(`[CLS] query [SEP] sentence [SEP]`). Offsets are code points of the original text.
"""

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer

from mnerqg.config import ModelConfig
from mnerqg.errors import ModelError
from mnerqg.io.packages import is_package, package_path
from mnerqg.queries import EntityQuery
from mnerqg.schema import Span, TextStatus

# A lone surrogate is a valid Python character that no UTF-8 text can hold and the tokeniser refuses.
_SURROGATE = re.compile("[\ud800-\udfff]")


@dataclass(frozen=True, slots=True)
class EncodedText:
    """One sentence and its pieces, cut to what fits beside the longest query; `text` is whole.

    All lists have one entry a piece. `starts` and `ends` are code points of the text, end exclusive;
    `begins_word` and `ends_word` mark the only places where an entity may begin or end.
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
    """Tokenises sentences and queries with a fast BERT-type tokenizer of `transformers`.

    Args:
        tokenizer: a fast tokenizer with [CLS] and [SEP].
        queries: the K queries.
        max_length: pieces of query, sentence and the three special tokens together.

    Raises:
        ModelError: a tokenizer without offsets or special tokens, or queries that leave no room for text.
    """

    def __init__(self, *, tokenizer: Any, queries: Sequence[EntityQuery], max_length: int) -> None:
        if not tokenizer.is_fast or tokenizer.cls_token_id is None or tokenizer.sep_token_id is None:
            raise ModelError(
                f"tokenizer {tokenizer.name_or_path} has no offsets or no [CLS]/[SEP]; use a fast BERT-type tokenizer"
            )
        self._tokenizer = tokenizer
        self.queries = tuple(queries)
        self.max_length = max_length
        self.cls_id: int = tokenizer.cls_token_id
        self.sep_id: int = tokenizer.sep_token_id
        self.pad_id: int = tokenizer.pad_token_id or 0
        self.budget = max_length - 3 - max(len(ids) for ids in self.query_ids)
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
        return ids[: self.max_length - 2]

    def encode(self, text: str) -> EncodedText:
        """Tokenise one sentence; never fails, whatever the text."""
        encoding = self._tokenizer(
            _SURROGATE.sub("�", text),
            add_special_tokens=False,
            split_special_tokens=True,  # a post that spells "[SEP]" has none
            return_offsets_mapping=True,
            verbose=False,
        )
        ids: list[int] = encoding["input_ids"]
        words: list[int] = encoding.word_ids()
        offsets: list[tuple[int, int]] = encoding["offset_mapping"]
        starts = [start for start, _ in offsets]
        limits = [*starts[1:], len(text)] if starts else []
        ends = [_with_marks(text, end, limit) for (_, end), limit in zip(offsets, limits, strict=True)]
        begins = [index == 0 or words[index - 1] != word for index, word in enumerate(words)]
        finishes = [*begins[1:], True] if begins else []
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

    def save(self, directory: Path) -> None:
        """Write the tokenizer files."""
        self._tokenizer.save_pretrained(directory)


def _with_marks(text: str, end: int, limit: int) -> int:
    """`end` moved over combining marks, which the normaliser drops from the piece they belong to."""
    while end < limit and unicodedata.category(text[end]).startswith("M"):
        end += 1
    return end


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
    """The fast tokenizer of an encoder (hub name or directory).

    Raises:
        ModelError: it cannot be read.
    """
    try:
        return AutoTokenizer.from_pretrained(name)
    except Exception as error:  # a damaged tokenizer.json is a KeyError, a TypeError or a bare Exception
        raise ModelError(
            f"no tokenizer at {name}: {first_line(error)}; give the name or the undamaged folder of an encoder"
        ) from None


def first_line(error: Exception) -> str:
    """The kind of a library's error and what its long message says at its beginning."""
    lines = str(error).strip().splitlines() or ["no reason given"]
    return f"{type(error).__name__}: {lines[0]}"
