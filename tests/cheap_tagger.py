"""A tagger whose model costs nothing, for the tests of everything around the model.

It reads pieces and canvases as the network does; the stages before and behind it are the real ones.
"""

import os
import time
import zlib
from types import SimpleNamespace
from typing import Self

import numpy as np

from mnerqg.inputs.sentences import Sentences, Shown
from mnerqg.model.found import Found

TYPES = ("PER", "LOC", "ORG", "OTHER")
DELAY = "MNERQG_TEST_DELAY_S"
"""The environment variable with the seconds that a batch takes, so that a test can hit the middle of a run."""


class CheapTagger:
    """Stands for `mnerqg.tagger.Tagger` in `tag_archive(plan, load_tagger=CheapTagger.load)`."""

    def __init__(self) -> None:
        self.finder = CheapFinder()

    @classmethod
    def load(cls, uri: str) -> Self:
        """Leaves the model directory alone: what its tokenizer and its queries are the stages know."""
        del uri
        return cls()


class CheapFinder:
    """Stands for `mnerqg.model.finder.Finder`.

    Its answers are a function of a post's pieces and canvas alone: the same to the last bit in every run, whatever the
    other posts of the batch are.
    """

    def __init__(self) -> None:
        self.busy_s = 0.0
        self.lanes = 1

    def collate(self, _: Sentences, shown: Shown) -> SimpleNamespace:
        canvases = dict(zip(shown.posts.tolist(), shown.rows.tolist(), strict=True))
        return SimpleNamespace(
            sides={post: shown.canvases[row].shape[0] for post, row in canvases.items()},
            pictures={post: zlib.crc32(shown.canvases[row].tobytes()) for post, row in canvases.items()},
        )

    def forget_shapes(self) -> None:
        """It keeps nothing."""

    def answer(self, batch: SimpleNamespace, sentences: Sentences) -> Found:
        """Four words of five are entities, of a type that their pieces decide."""
        started = time.monotonic()
        time.sleep(float(os.environ.get(DELAY, "0")))
        spans, scores, existence = [], [], []
        for post in range(len(sentences)):
            _, _, places = sentences.pieces(np.array([post]))
            ids = sentences.ids[places].astype(np.int64)
            existence.append([_score(zlib.crc32(ids.tobytes() + bytes([k]))) for k in range(len(TYPES))])
            for first, last in _words(sentences.begins_word[places], sentences.ends_word[places]):
                digest = zlib.crc32(ids[first : last + 1].tobytes())
                if digest % 5:
                    spans.append((post, digest % len(TYPES), first, last))
                    scores.append(_score(digest))
        boxes = [
            (post, k, _box(zlib.crc32(bytes([k]), picture), batch.sides[post]))
            for post, picture in batch.pictures.items()
            for k in range(len(TYPES))
            if picture >> k & 1
        ]
        self.busy_s += time.monotonic() - started
        return Found(
            existence=np.asarray(existence, np.float32),
            spans=np.asarray(spans, np.int64).reshape(-1, 4),
            span_scores=np.asarray(scores, np.float32),
            boxes=np.asarray([box[:2] for box in boxes], np.int64).reshape(-1, 2),
            boxes_canvas=np.asarray([box for _, _, (box, _) in boxes], np.float32).reshape(-1, 4),
            box_scores=np.asarray([score for _, _, (_, score) in boxes], np.float32),
        )


def _words(begins: np.ndarray, ends: np.ndarray) -> list[tuple[int, int]]:
    """The first and last piece of each word; the last may be cut."""
    firsts = np.flatnonzero(begins).tolist()
    lasts = [int(np.flatnonzero(ends[first:])[0]) + first for first in firsts if ends[first:].any()]
    return list(zip(firsts, lasts, strict=False))


def _box(digest: int, side: int) -> tuple[tuple[float, ...], float]:
    """A box whose first corner lies left above the middle of the canvas and whose last one right below it."""
    left, top, right, bottom = ((digest >> shift & 127) / 256 * side for shift in (0, 7, 14, 21))
    return (left, top, side - right, side - bottom), _score(digest)


def _score(digest: int) -> float:
    """Above one half and below one; exact as float32."""
    return 0.5 + (digest >> 4) % 500 / 1024
