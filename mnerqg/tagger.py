"""The public Python API: `Tagger.load(uri).tag(posts)`."""

import os
from collections.abc import Sequence
from dataclasses import replace
from itertools import islice
from typing import Self

import numpy as np
import torch

from mnerqg.config import Config, DecodeConfig
from mnerqg.config_jobs import ImageLimits, Precision
from mnerqg.errors import ModelError
from mnerqg.inputs.annotations import best_region
from mnerqg.inputs.examples import encode_post
from mnerqg.inputs.images import Letterbox
from mnerqg.inputs.posts import PreparedPost, prepare_post
from mnerqg.inputs.sentences import Sentences, Shown
from mnerqg.inputs.text import TextEncoder, first_line
from mnerqg.inputs.windows import merge_windows
from mnerqg.model.build import Network
from mnerqg.model.checkpoint import read_model
from mnerqg.model.decode import Decoder, Seen
from mnerqg.model.files import ModelFiles, check_model
from mnerqg.model.finder import Finder
from mnerqg.model.found import Found
from mnerqg.model.inference import compile_parts, ready_to_answer
from mnerqg.model.precision import multiplies_bf16
from mnerqg.queries import EntityQuery
from mnerqg.schema import Post, Region, TaggedPost


class Tagger:
    """A model with everything around it that turns posts into entities and regions.

    Args:
        model: in any mode; a copy of it as it is now answers.
        text_encoder: of the model's encoder and queries.
        config: what the model was trained with.
        model_id: digest of weights, encoder, config and queries.
        device: where the model runs.
        windows: of a long text so many windows are read at most, which overlap; 1 reads its beginning alone.
        precision: what it computes in where the device multiplies in it; None: on CUDA what it was trained in, on a CPU
            fp32.
        compiled: whether its parts are compiled, which takes minutes.

    Raises:
        ModelError: it cannot be compiled.
    """

    def __init__(
        self,
        *,
        model: Network,
        text_encoder: TextEncoder,
        config: Config,
        model_id: str,
        device: torch.device | str = "cpu",
        windows: int = 1,
        precision: Precision | None = None,
        compiled: bool = False,
    ) -> None:
        device = torch.device(device)
        precision = precision or (config.train.precision if device.type == "cuda" else "fp32")
        bf16 = precision == "bf16" and multiplies_bf16(device)
        self.model = ready_to_answer(
            model,
            device=device,
            dtype=torch.bfloat16 if bf16 else torch.float32,
            compiled=compiled,
        )
        self.finder = Finder(self.model, text_encoder=text_encoder, config=config, device=device)
        self.text_encoder = text_encoder
        self.config = config
        self.model_id = model_id
        self.device = device
        self.types = tuple(query.type for query in text_encoder.queries)
        self.windows = windows if config.model.inputs != "picture" else 1  # FA-VG reads no text
        self.limits = ImageLimits()
        self._decode = Decoder(config=config.decode, types=self.types)
        if compiled:
            self._compile()

    @classmethod
    def load(
        cls,
        uri: str | os.PathLike[str],
        device: torch.device | str | None = None,
        queries: Sequence[EntityQuery] | None = None,
        *,
        windows: int = 1,
        precision: Precision | None = None,
        compiled: bool = False,
    ) -> Self:
        """Load a model directory, local or `s3://`; on CUDA where there is one unless `device` says otherwise.

        `queries` are asked in the place of those it was trained with: types may be among them that it never saw.
        `windows` above 1 tags all of a long text, but for what so many do not cover (`inputs.windows`).
        `precision` and `compiled` as of a `Tagger`.

        Raises:
            ModelError: a file missing, damaged or of another format version, queries that it cannot be asked, a CUDA
                device where torch sees none, or it cannot be compiled.
            StorageError: the URI cannot be read.
        """
        files = check_model(os.fspath(uri), None if queries is None else tuple(queries))
        return cls.of(files, device, windows=windows, precision=precision, compiled=compiled)

    @classmethod
    def of(
        cls,
        files: ModelFiles,
        device: torch.device | str | None = None,
        *,
        windows: int = 1,
        precision: Precision | None = None,
        compiled: bool = False,
    ) -> Self:
        """As `load`, of a model directory that has been checked."""
        device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        if device.type == "cuda" and not torch.cuda.is_available():
            raise ModelError(
                f"the model is to run on {device}, but torch sees no GPU; give the container NVIDIA's runtime and "
                "NVIDIA_VISIBLE_DEVICES=all, or ask for no GPU (--gpus_per_actor 0)"
            )
        directory = read_model(files)
        return cls(
            model=directory.model,
            text_encoder=directory.text_encoder,
            config=directory.config,
            model_id=directory.model_id,
            device=device,
            windows=windows,
            precision=precision,
            compiled=compiled,
        )

    def tag(self, posts: Sequence[Post], *, batch_size: int = 16) -> list[TaggedPost]:
        """One `TaggedPost` for every post, in order; bad text or pictures are statuses, never exceptions."""
        side = self.config.model.image_side
        tagged: list[TaggedPost] = []
        for start in range(0, len(posts), batch_size):
            part = posts[start : start + batch_size]
            prepared = [prepare_post(post, side, self.limits) for post in part]
            tagged += self.tag_prepared(prepared, batch_size=batch_size)
        return tagged

    def tag_prepared(
        self, posts: Sequence[PreparedPost], *, batch_size: int | None = None
    ) -> list[TaggedPost]:
        """Tag posts as one batch; the windows of long texts in batches of `batch_size`, or of as many as the posts.

        Raises:
            ModelError: the model is the second of two stages, whose regions posts do not bring along.
        """
        if self.config.model.picture == "region":
            raise ModelError(
                "the model is the second of two stages (model.picture is region) and needs another model's boxes; "
                "tag with a model whose model.picture is whole"
            )
        if not posts:
            return []
        texts = [self.text_encoder.windows(post.text or "", self.windows) for post in posts]
        seen = [
            Seen(window, post.letterbox)
            for post, windows in zip(posts, texts, strict=True)
            for window in windows
        ]
        sentences = Sentences.of([one.text for one in seen])
        canvases = [post.pixels for post, windows in zip(posts, texts, strict=True) for _ in windows]
        size = batch_size or len(posts)
        parts = []
        for start in range(0, len(seen), size):
            which = np.arange(start, min(start + size, len(seen)))
            some = sentences.take(which)
            batch = self.finder.collate(some, Shown.of([canvases[one] for one in which]))
            parts.append((which, self.finder.answer(batch, some)))
        answers = iter(self._decode(Found.together(parts, len(seen)), seen))
        return [
            replace(
                merge_windows(list(islice(answers, len(windows))), windows, self._decode.resolve),
                image_status=post.image_status,
                error=post.error,
            )
            for post, windows in zip(posts, texts, strict=True)
        ]

    def answers_at(self, posts: Sequence[Post], configs: Sequence[DecodeConfig]) -> list[list[TaggedPost]]:
        """For one batch of posts the answers with each of `configs`, which differ in the thresholds of spans alone; the
        network runs once, and reads the beginning of a long text alone.

        Posts with phrases are asked those, and a second stage looks at each post's best weak box.
        """
        is_cut = self.config.model.picture == "region"
        examples = []
        for post in posts:
            region = best_region(post) if is_cut else None
            prepared = prepare_post(post, self.config.model.image_side, self.limits, region)
            example = encode_post(post.text, post.phrases, self.text_encoder)
            examples.append(replace(example, pixels=prepared.pixels, letterbox=prepared.letterbox))
        seen = [Seen(example.text, example.letterbox, example.phrase_ids) for example in examples]
        return [
            Decoder(config=config, types=self.types)(found, seen)
            for config, found in zip(configs, self.finder.at_each(examples, configs), strict=True)
        ]

    def best_regions(self, posts: Sequence[Post]) -> list[tuple[Region, ...]]:
        """The most confident box of every type for each post, whatever its score; none without a picture."""
        (answers,) = self.answers_at(posts, [self.config.decode])
        return [answer.best_regions for answer in answers]

    def _compile(self) -> None:
        """Compile the network's parts and try them on two posts of unlike length, with a picture and without."""
        side = self.config.model.image_side
        compile_parts(self.model)
        try:
            self.tag_prepared(
                [
                    PreparedPost(
                        "Ada in Oslo", np.zeros((side, side, 3), np.uint8), Letterbox(side, side, side)
                    )
                ]
                * 2
                + [PreparedPost("word " * 40)]
            )
        except Exception as error:  # whatever torch's compiler lacks on a machine
            raise ModelError(
                f"the model cannot be compiled here: {first_line(error)}; leave compiled at false"
            ) from None
