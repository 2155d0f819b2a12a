"""A tagger that costs nothing, for the tests of everything around the model."""

import json
import os
import re
import time
import zlib
from collections.abc import Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import TYPE_CHECKING, Self

from mnerqg.config import Config
from mnerqg.config_files import load_config
from mnerqg.io import storage
from mnerqg.schema import Entity, Region, TaggedPost, TextStatus

if TYPE_CHECKING:
    from mnerqg.inputs.posts import PreparedPost

TYPES = ("PER", "LOC", "ORG", "OTHER")
TEXT_LIMIT = 1000
"""Code points; of a longer text the rest is not read."""
DELAY = "MNERQG_TEST_DELAY_S"
"""The environment variable with the seconds that a batch takes, so that a test can hit the middle of a run."""


class CheapTagger:
    """Stands for `mnerqg.tagger.Tagger` in `tag_archive(plan, load_tagger=CheapTagger.load)`.

    Its answers are a function of a post's text and canvas alone: the same to the last bit in every run, whatever the
    other posts of the batch are. All numbers are exact as float32.
    """

    def __init__(self, image_side: int, model_id: str) -> None:
        self.config = SimpleNamespace(model=SimpleNamespace(image_side=image_side))
        self.model_id = model_id
        self.types = TYPES

    @classmethod
    def load(cls, uri: str) -> Self:
        """Takes canvas size and model_id from a real model directory, and leaves its weights alone."""
        text = storage.read_text(storage.join(uri, "config.yaml"))
        manifest = json.loads(storage.read_text(storage.join(uri, "model.json")))
        return cls(load_config(Config, text, source=uri).model.image_side, manifest["model_id"])

    def tag_prepared(self, posts: Sequence["PreparedPost"]) -> list[TaggedPost]:
        time.sleep(float(os.environ.get(DELAY, "0")))
        return [tag_cheaply(post) for post in posts]


def tag_cheaply(post: "PreparedPost") -> TaggedPost:
    """Every capitalised word is an entity, of a type that its letters decide."""
    text = post.text or ""
    regions = _regions(post)
    index = {region.type: number for number, region in enumerate(regions)}
    status: TextStatus = "truncated" if len(text) > TEXT_LIMIT else "ok" if text.strip() else "empty"
    return TaggedPost(
        entities=tuple(replace(entity, region=index.get(entity.type)) for entity in _entities(text)),
        regions=regions,
        existence=tuple((kind, _score(_digest(f"{kind} {text[:TEXT_LIMIT]}"))) for kind in TYPES),
        image_width=post.letterbox.width if post.letterbox else None,
        image_height=post.letterbox.height if post.letterbox else None,
        image_status=post.image_status,
        text_status=status,
        text_read=min(len(text), TEXT_LIMIT),
        error=post.error,
    )


def _entities(text: str) -> list[Entity]:
    words = [match for match in re.finditer(r"\w+", text[:TEXT_LIMIT]) if match[0][0].isupper()]
    digests = [_digest(match[0]) for match in words]
    return [
        Entity(match[0], match.start(), match.end(), TYPES[digest % len(TYPES)], _score(digest))
        for match, digest in zip(words, digests, strict=True)
    ]


def _regions(post: "PreparedPost") -> tuple[Region, ...]:
    if post.pixels is None or post.letterbox is None:
        return ()
    picture = zlib.crc32(post.pixels.tobytes())
    return tuple(
        _region(kind, post.letterbox.width, post.letterbox.height, _digest(f"{kind} {picture}"))
        for place, kind in enumerate(TYPES)
        if picture >> place & 1
    )


def _region(kind: str, width: int, height: int, digest: int) -> Region:
    """A box whose first corner lies in the first half of each edge and whose last one in the second."""
    left, top, right, bottom = (digest >> shift & 127 for shift in (0, 7, 14, 21))
    return Region(
        type=kind,
        x_min=width * left / 256,
        y_min=height * top / 256,
        x_max=width * (256 - right) / 256,
        y_max=height * (256 - bottom) / 256,
        score=_score(digest),
    )


def _digest(text: str) -> int:
    # Not hash(), which differs from process to process; texts may hold lone surrogates.
    return zlib.crc32(text.encode("utf-8", "surrogatepass"))


def _score(digest: int) -> float:
    """Above one half and below one."""
    return 0.5 + (digest >> 4) % 500 / 1024
