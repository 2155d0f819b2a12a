"""The Ray Data stage of training: rows of training Parquet to examples.

Ray's coordinating processes import this module only to pass the stage on. What needs torch and transformers,
a dozen CPU seconds a process, is therefore imported where it is called.
"""

import hashlib
import random
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from mnerqg.config import Config
from mnerqg.config_jobs import ImageLimits
from mnerqg.datasets.prepared import post_from_row
from mnerqg.inputs.annotations import best_region, choose_annotations, draw_phrases
from mnerqg.queries import EntityQuery
from mnerqg.schema import Post

if TYPE_CHECKING:
    from mnerqg.inputs.examples import Example
    from mnerqg.inputs.text import TextEncoder


class EncodePosts:
    """Decodes, letterboxes, augments and tokenises; the tokenizer is loaded once a task."""

    def __init__(self, config: Config, queries: tuple[EntityQuery, ...]) -> None:
        self._config = config
        self._queries = queries
        self._text_encoder: TextEncoder | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_text_encoder": None}

    def __call__(self, rows: pa.Table) -> pa.Table:
        from mnerqg.inputs.augment import Augmenter
        from mnerqg.inputs.examples import augment_example, examples_to_table
        from mnerqg.inputs.text import load_text_encoder

        config = self._config
        if self._text_encoder is None:
            self._text_encoder = load_text_encoder(config.model, self._queries)
        augmenter = Augmenter(config.augment)
        # The block is another one each epoch and the same one when a run is repeated; so are the augmentations.
        block = hashlib.sha256("\n".join(rows["post_id"].to_pylist()).encode()).digest()
        generator = random.Random(block + config.train.seed.to_bytes(8, "little", signed=True))
        examples = []
        for row in rows.to_pylist():
            example = self._encode(post_from_row(row), self._text_encoder, generator)
            examples.append(augment_example(example, augmenter, seed=generator.getrandbits(31)))
        return examples_to_table(examples)

    def _encode(self, post: Post, text_encoder: "TextEncoder", generator: random.Random) -> "Example":
        from mnerqg.inputs.examples import make_example

        model, train = self._config.model, self._config.train
        chosen = choose_annotations(draw_phrases(post, train.phrases_per_post, generator), train)
        return make_example(
            chosen.post,
            text_encoder,
            model.image_side,
            ImageLimits(),
            region=best_region(post) if model.picture == "region" else None,
            unknown_types=chosen.unknown_types,
        )
