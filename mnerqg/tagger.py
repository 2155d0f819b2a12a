"""The public Python API: `Tagger.load(uri).tag(posts)`."""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Self

import torch

from mnerqg.checkpoint import ModelDirectory, load_model
from mnerqg.config import Config
from mnerqg.data.augment import Pixels
from mnerqg.data.batch import Collator, Example
from mnerqg.data.images import ImageLimits, ImageProblem, Letterbox, decode_letterbox
from mnerqg.data.text import TextEncoder
from mnerqg.decode import Decoded, Decoder, attach_regions
from mnerqg.metrics import Counts
from mnerqg.model.build import build_anchors
from mnerqg.model.mnerqg import MNERQG
from mnerqg.schema import ImageStatus, Post, TaggedPost, TextStatus


@dataclass(frozen=True, slots=True)
class PreparedPost:
    """A post whose picture has been decoded, or has been found not to be one.

    `pixels` is the letterboxed canvas [S, S, 3] uint8 and `letterbox` its way back to the picture.
    """

    post_id: str
    text: str | None
    pixels: Pixels | None = None
    letterbox: Letterbox | None = None
    image_status: ImageStatus = "none"
    error: str | None = None


def prepare_post(post: Post, side: int, limits: ImageLimits) -> PreparedPost:
    """Decode and letterbox a post's picture; a bad one is a status, never an exception."""
    if post.image is None:
        return PreparedPost(post.post_id, post.text)
    try:
        pixels, letterbox = decode_letterbox(post.image, side, limits)
    except ImageProblem as problem:
        return PreparedPost(post.post_id, post.text, image_status=problem.status, error=str(problem))
    return PreparedPost(post.post_id, post.text, pixels, letterbox, image_status="ok")


class Tagger:
    """A model with everything around it that turns posts into entities and regions.

    Args:
        model: in any mode; it is put into eval mode for each call.
        text_encoder: of the model's encoder and queries.
        config: what the model was trained with.
        model_id: digest of weights, config and queries.
        device: where the model runs.
    """

    def __init__(
        self,
        *,
        model: MNERQG,
        text_encoder: TextEncoder,
        config: Config,
        model_id: str,
        device: torch.device | str = "cpu",
    ) -> None:
        anchors = build_anchors(config.model)
        self.model = model
        self.text_encoder = text_encoder
        self.config = config
        self.model_id = model_id
        self.device = torch.device(device)
        self.types = tuple(query.type for query in text_encoder.queries)
        self.limits = ImageLimits()
        self._collate = Collator(
            text_encoder=text_encoder, anchors=anchors, ignore_iou=config.loss.ignore_iou
        )
        self._decode = Decoder(
            config=config.decode, types=self.types, anchors=anchors, match_head=model.match
        )

    @classmethod
    def load(cls, uri: str | os.PathLike[str], device: torch.device | str | None = None) -> Self:
        """Load a model directory, local or `s3://`; on CUDA where there is one unless `device` says otherwise.

        Raises:
            ModelError: a file missing, damaged or of another format version.
            StorageError: the URI cannot be read.
        """
        device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        directory: ModelDirectory = load_model(os.fspath(uri))
        return cls(
            model=directory.model.to(device),
            text_encoder=directory.text_encoder,
            config=directory.config,
            model_id=directory.model_id,
            device=device,
        )

    def tag(self, posts: Sequence[Post], *, batch_size: int = 16) -> list[TaggedPost]:
        """One `TaggedPost` for every post, in order; bad text or pictures are statuses, never exceptions."""
        side = self.config.model.image_side
        tagged: list[TaggedPost] = []
        for start in range(0, len(posts), batch_size):
            part = posts[start : start + batch_size]
            tagged += self.tag_prepared([prepare_post(post, side, self.limits) for post in part])
        return tagged

    def tag_prepared(self, posts: Sequence[PreparedPost]) -> list[TaggedPost]:
        """Tag posts as one batch."""
        if not posts:
            return []
        examples = [self._example(post) for post in posts]
        decoded = self.predict(examples, [post.text or "" for post in posts])
        return [
            self._tagged(post, example, answer)
            for post, example, answer in zip(posts, examples, decoded, strict=True)
        ]

    @torch.inference_mode()
    def predict(self, examples: Sequence[Example], texts: Sequence[str]) -> list[Decoded]:
        """The model's answers for one batch of examples with their original texts."""
        was_training = self.model.training
        self.model.eval()
        batch = self._collate(examples, with_targets=False).to(self.device)
        bf16 = self.device.type == "cuda" and self.config.train.precision == "bf16"
        with torch.autocast(self.device.type, torch.bfloat16, enabled=bf16):
            output = self.model(batch)
        answers = self._decode(output, batch, examples, texts)
        self.model.train(was_training)
        return answers

    def score(self, posts: Iterator[Post] | Sequence[Post], *, batch_size: int = 16) -> Counts:
        """Score annotated posts, each exactly once."""
        counts = Counts(self.types)
        pending: list[Post] = []
        for post in posts:
            pending.append(post)
            if len(pending) == batch_size:
                self._score_batch(pending, counts)
                pending = []
        if pending:
            self._score_batch(pending, counts)
        return counts

    def _score_batch(self, posts: Sequence[Post], counts: Counts) -> None:
        side = self.config.model.image_side
        examples = [self._example(prepare_post(post, side, self.limits)) for post in posts]
        for post, answer in zip(
            posts, self.predict(examples, [post.text or "" for post in posts]), strict=True
        ):
            counts.add_post(post, answer.entities, answer.best_regions, self._decode.regions(answer))

    def _example(self, post: PreparedPost) -> Example:
        return Example(
            self.text_encoder.encode(post.text or ""), pixels=post.pixels, letterbox=post.letterbox
        )

    def _tagged(self, post: PreparedPost, example: Example, answer: Decoded) -> TaggedPost:
        regions = self._decode.regions(answer)
        return TaggedPost(
            post_id=post.post_id,
            entities=attach_regions(answer.entities, regions),
            regions=regions,
            existence=tuple(zip(self.types, answer.existence, strict=True)),
            image_width=post.letterbox.width if post.letterbox else None,
            image_height=post.letterbox.height if post.letterbox else None,
            image_status=post.image_status,
            text_status=_text_status(post.text, example),
            error=post.error,
        )


def merge_pictures(answers: Sequence[TaggedPost], indices: Sequence[int]) -> TaggedPost:
    """One post from the answers for each of its usable pictures.

    Args:
        answers: at least one, in the order of the pictures.
        indices: the place of each answer's picture among all pictures of the post.

    The entities are those read with the first picture (chosen: the text decides most of them, and one answer is
    consistent in itself); every picture gives its regions, and an entity points to the best region of its type.
    """
    first = next((answer for answer in answers if answer.existence), answers[0])
    regions = tuple(
        replace(region, image_index=index)
        for answer, index in zip(answers, indices, strict=True)
        for region in answer.regions
    )
    errors = [answer.error for answer in answers if answer.error]
    return replace(
        first,
        entities=attach_regions(first.entities, regions),
        regions=regions,
        error="; ".join(dict.fromkeys(errors)) or None,
    )


def _text_status(text: str | None, example: Example) -> TextStatus:
    if text is None or not text.strip():
        return "empty"
    return "truncated" if example.text.truncated else "ok"
