"""What the network is given of several posts at once, and what it should answer.

Shapes: P posts, K queries a post, L pieces, I pictures, S canvas side, C box candidates.
"""

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Self, TypeVar

import torch
from torch import Tensor

R = TypeVar("R")


@dataclass(frozen=True)
class Targets:
    """What a batch should answer.

    existence: [P, K] 1 where the text names an entity of the type, -100 for queries of the post's own.
    starts, ends: [P, K, L] 1 where an entity of the type starts or ends.
    pairs: [N, 4] (post, query, start, end) of gold starts and gold ends of a query, start ≤ end; matches: [N] 1 where
        the pair is a gold span, else 0.
    objectness: [P, K, C] 1 assigned, 0 background, -1 not to be learned from.
    box_candidates: [M, 3] (post, query, candidate) of the boxed pairs; box_targets: [M, 4].
    labels: [P, L] the word labels that the baselines learn, of the words' first pieces (see `model.words`).
    """

    existence: Tensor
    starts: Tensor
    ends: Tensor
    pairs: Tensor
    matches: Tensor
    objectness: Tensor
    box_candidates: Tensor
    box_targets: Tensor
    labels: Tensor


@dataclass(frozen=True)
class Texts:
    """N sequences that are padded to one length, as the encoder reads them.

    input_ids, token_type_ids, attention_mask: [N, L'] of query and sentence as the tokenizer lays pairs: of BERT's
        `[CLS] query [SEP] sentence [SEP]`.
    """

    input_ids: Tensor
    token_type_ids: Tensor
    attention_mask: Tensor


@dataclass(frozen=True)
class Batch:
    """Inputs of P posts. K is the most queries that a post of the batch has, L the pieces of the longest sequence.

    texts: every sequence once, in groups: the encoder does not pad all of them to the longest.
    sequence: [P, K] which of the sequences of all `texts`, counted through, stands there.
    attention_mask: [P, K, L] true on the sequence.
    query_sequence: [P, K] in which of the sequences the grounding reads the query; see `ModelConfig.query_alone`.
    query_mask: [P, K, M] true on the query's own pieces there; M is where the longest query ends.
    begins_word, ends_word: [P, K, L] true where an entity may start or end.
    sentence_offset: [P, K] position of the sentence's first piece behind each query.
    pixels: [I, 3, S, S] uint8, every picture once, but for copies of the last one in an even batch (`Collator`); I may
        be 0.
    shown: [Q] the posts that have a picture, in rising order; in an even batch the last one several times.
    picture: [Q] the row of each one's picture in `pixels`.
    """

    texts: tuple[Texts, ...]
    sequence: Tensor
    attention_mask: Tensor
    query_sequence: Tensor
    query_mask: Tensor
    begins_word: Tensor
    ends_word: Tensor
    sentence_offset: Tensor
    pixels: Tensor
    shown: Tensor
    picture: Tensor
    targets: Targets | None = None

    def to(self, device: torch.device | str) -> Self:
        """The batch on `device`."""
        return changed(self, lambda tensor: tensor.to(device, non_blocking=True))

    def pinned(self) -> Self:
        """The batch in memory from which a GPU fetches it while other work goes on."""
        return changed(self, Tensor.pin_memory)


def tensors_of(record: object) -> list[Tensor]:
    """All tensors of a batch, or of a part of one, in the order of its fields."""
    found: list[Tensor] = []

    def keep(tensor: Tensor) -> Tensor:
        found.append(tensor)
        return tensor

    changed(record, keep)
    return found


def changed(record: R, change: Callable[[Tensor], Tensor]) -> R:
    """The record with every tensor in it changed."""
    if isinstance(record, Tensor):
        return change(record)  # type: ignore[return-value]
    if isinstance(record, tuple):
        return tuple(changed(part, change) for part in record)  # type: ignore[return-value]
    if record is None:
        return record
    parts = {entry.name: changed(getattr(record, entry.name), change) for entry in fields(record)}  # type: ignore[arg-type]
    return replace(record, **parts)  # type: ignore[type-var]
