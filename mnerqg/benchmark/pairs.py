"""The layout of research code: every query of every post is an example of its own, with a picture of its own.

Ours is dense, [P, K, L], and encodes a picture once a post. The answers are the same.
"""

from dataclasses import replace

import torch
from torch import Tensor

from mnerqg.inputs.batch import Batch, Targets, Texts
from mnerqg.model.encoder import lay_states


def as_pairs(batch: Batch) -> Batch:
    """A batch of P posts and K queries as one of P·K posts and one query, all sequences padded to the longest.

    The pair (p, k) stands at p·K + k. A picture is there once for each of its post's queries.
    """
    posts, queries, pieces = batch.attention_mask.shape

    def apart(tensor: Tensor) -> Tensor:
        return tensor.reshape(posts * queries, 1, *tensor.shape[2:])

    texts = [_padded(batch, batch.sequence.flatten(), pieces)]
    sequence = query_sequence = torch.arange(posts * queries)[:, None]
    if not torch.equal(batch.query_sequence, batch.sequence):
        lengths = torch.cat([some.attention_mask.sum(-1) for some in batch.texts])
        longest = int(lengths[batch.query_sequence].max())
        texts.append(_padded(batch, batch.query_sequence.flatten(), longest))
        query_sequence = sequence + posts * queries
    return replace(
        batch,
        texts=tuple(texts),
        sequence=sequence,
        attention_mask=apart(batch.attention_mask),
        query_sequence=query_sequence,
        query_mask=apart(batch.query_mask),
        begins_word=apart(batch.begins_word),
        ends_word=apart(batch.ends_word),
        sentence_offset=apart(batch.sentence_offset),
        pixels=batch.pixels[batch.picture].repeat_interleave(queries, 0),
        shown=(batch.shown[:, None] * queries + torch.arange(queries)).flatten(),
        picture=torch.arange(len(batch.shown) * queries),
        targets=None if batch.targets is None else _targets(batch.targets, queries),
    )


def _padded(batch: Batch, sequence: Tensor, pieces: int) -> Texts:
    """These sequences as one group. What stands behind a sequence is masked, so that it may be any piece."""

    def laid(name: str) -> Tensor:
        groups = [getattr(texts, name)[..., None] for texts in batch.texts]
        return lay_states(groups, sequence, pieces).squeeze(-1)

    return Texts(laid("input_ids"), laid("token_type_ids"), laid("attention_mask"))


def _targets(targets: Targets, queries: int) -> Targets:
    def apart(tensor: Tensor) -> Tensor:
        return tensor.reshape(-1, 1, *tensor.shape[2:])

    def moved(places: Tensor) -> Tensor:
        """(post, query, …) as (pair, 0, …)."""
        pair = places[:, :1] * queries + places[:, 1:2]
        return torch.cat([pair, torch.zeros_like(pair), places[:, 2:]], 1)

    return replace(
        targets,
        existence=apart(targets.existence),
        starts=apart(targets.starts),
        ends=apart(targets.ends),
        pairs=moved(targets.pairs),
        objectness=apart(targets.objectness),
        box_candidates=moved(targets.box_candidates),
        labels=targets.labels.repeat_interleave(queries, 0),
    )
