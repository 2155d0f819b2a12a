"""The Ray Data stage of training: rows of training Parquet to examples.

Ray's coordinating processes import this module only to pass the stage on. What needs torch, CPU seconds a process, is
therefore imported where it is called.
"""

import hashlib
import random
from typing import TYPE_CHECKING

import pyarrow as pa

from mnerqg.config import Config
from mnerqg.config_jobs import ImageLimits
from mnerqg.datasets.prepared import post_from_row
from mnerqg.inputs.annotations import best_region, choose_annotations, draw_phrases
from mnerqg.inputs.text import TextEncoder, TextEncoderSource, shared_text_encoder
from mnerqg.schema import Post

if TYPE_CHECKING:
    from mnerqg.inputs.examples import Example


class EncodePosts:
    """Decodes, letterboxes, augments and tokenises.

    Args:
        config: of the run.
        source: of the text encoder.
    """

    def __init__(self, config: Config, source: TextEncoderSource) -> None:
        self._config = config
        self._source = source

    def __call__(self, rows: pa.Table) -> pa.Table:
        from mnerqg.inputs.augment import Augmenter
        from mnerqg.inputs.examples import augment_example, examples_to_table

        config = self._config
        text_encoder = shared_text_encoder(self._source)
        augmenter = Augmenter(config.augment)
        # The block is another one each epoch and the same one when a run is repeated; so are the augmentations.
        block = hashlib.sha256("\n".join(rows["post_id"].to_pylist()).encode()).digest()
        generator = random.Random(block + config.train.seed.to_bytes(8, "little", signed=True))
        examples = []
        for row in rows.to_pylist():
            example = self._encode(post_from_row(row), text_encoder, generator)
            examples.append(augment_example(example, augmenter, seed=generator.getrandbits(31)))
        return examples_to_table(examples)

    def _encode(self, post: Post, text_encoder: TextEncoder, generator: random.Random) -> "Example":
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
