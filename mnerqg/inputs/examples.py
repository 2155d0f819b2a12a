"""From posts to examples, one a post, on the host: text tokenised, picture decoded and augmented, targets in place.

S is the side of the canvas, N the number of boxes.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, fields, replace

import numpy as np
import pyarrow as pa

from mnerqg.boxes import Floats
from mnerqg.config_jobs import ImageLimits
from mnerqg.inputs.annotations import decode_picture
from mnerqg.inputs.augment import Augmenter
from mnerqg.inputs.images import Letterbox, Pixels
from mnerqg.inputs.picture_files import ImageProblem
from mnerqg.inputs.text import EncodedText, TextEncoder
from mnerqg.schema import Box, Phrase, Post


@dataclass(frozen=True, slots=True)
class Example:
    """A post as the model takes it, with its targets if it has any.

    `pixels` is the letterboxed canvas [S, S, 3]; `spans` are (first piece, last piece, type index);
    `boxes_canvas` [N, 4] xyxy on the canvas with `box_types` [N] type indices. `unknown_types` are the indices
    of types of which nobody knows whether they are shown. `phrases` are the pieces of the post's own queries, by
    which boxes are counted then, and `phrase_ids` their names.
    """

    text: EncodedText
    pixels: Pixels | None = None
    letterbox: Letterbox | None = None
    spans: tuple[tuple[int, int, int], ...] = ()
    boxes_canvas: Floats = field(default_factory=lambda: np.zeros((0, 4), np.float32))
    box_types: tuple[int, ...] = ()
    boxes_annotated: bool = False
    unknown_types: tuple[int, ...] = ()
    phrases: tuple[list[int], ...] = ()
    phrase_ids: tuple[str, ...] = ()


def encode_post(text: str | None, phrases: Sequence[Phrase], text_encoder: TextEncoder) -> Example:
    """A post's text and own queries, without picture and targets."""
    return Example(
        text_encoder.encode(text or ""),
        phrases=tuple(text_encoder.encode_query(phrase.phrase) for phrase in phrases),
        phrase_ids=tuple(phrase.id for phrase in phrases),
    )


def make_example(
    post: Post,
    text_encoder: TextEncoder,
    side: int,
    limits: ImageLimits,
    *,
    region: Box | None = None,
    unknown_types: Collection[str] = (),
) -> Example:
    """Encode a training post. An undecodable picture counts as none; annotations of unasked types are left out.

    Args:
        post: with the annotations to learn from.
        text_encoder: of the model.
        side: of the canvas, pixels.
        limits: of the picture.
        region: all of the picture that is to be seen; boxes are left out then, for they lie in the whole.
        unknown_types: neither a box nor its absence is learned of these.
    """
    example = encode_post(post.text, post.phrases, text_encoder)
    types = [query.type for query in text_encoder.queries]
    spans = []
    for span in post.entities:
        pieces = example.text.piece_span(span)
        if pieces is not None and span.type in types:
            spans.append((*pieces, types.index(span.type)))
    example = replace(example, spans=tuple(spans))
    if post.image is None:
        return example
    try:
        pixels, letterbox, _ = decode_picture(post.image, side, limits, region)
    except ImageProblem:
        return example
    if region is not None:
        return replace(example, pixels=pixels, letterbox=letterbox)
    types = list(example.phrase_ids) or types
    boxes = [box for box in post.boxes if box.type in types]
    boxes_px = np.asarray([box.xyxy_px for box in boxes], np.float32).reshape(-1, 4)
    return replace(
        example,
        pixels=pixels,
        letterbox=letterbox,
        boxes_canvas=letterbox.to_canvas(boxes_px).astype(np.float32),
        box_types=tuple(types.index(box.type) for box in boxes),
        boxes_annotated=post.boxes_annotated,
        unknown_types=tuple(types.index(kind) for kind in sorted(unknown_types) if kind in types),
    )


def augment_example(example: Example, augmenter: Augmenter, *, seed: int) -> Example:
    """Augment the picture of a training example, or take it away together with its boxes."""
    if example.pixels is None:
        return example
    augmented = augmenter(example.pixels, example.boxes_canvas, seed=seed)
    if augmented is None:
        return Example(example.text, spans=example.spans, phrases=example.phrases)
    # The letterbox no longer describes the moved picture.
    return replace(example, pixels=augmented[0], boxes_canvas=augmented[1], letterbox=None)


# Examples travel from Ray Data's tasks to the training workers as Arrow columns: no ragged tensors, no pickles.
EXAMPLE_SCHEMA = pa.schema(
    [
        ("text", pa.string()),
        ("token_ids", pa.list_(pa.int32())),
        ("starts", pa.list_(pa.int32())),
        ("ends", pa.list_(pa.int32())),
        ("begins_word", pa.list_(pa.bool_())),
        ("ends_word", pa.list_(pa.bool_())),
        ("text_read", pa.int32()),
        ("truncated", pa.bool_()),
        ("pixels", pa.binary()),
        ("spans", pa.list_(pa.int32())),
        ("boxes_canvas", pa.list_(pa.float32())),
        ("box_types", pa.list_(pa.int32())),
        ("boxes_annotated", pa.bool_()),
        ("unknown_types", pa.list_(pa.int32())),
        ("phrases", pa.list_(pa.list_(pa.int32()))),
    ]
)


def examples_to_table(examples: Sequence[Example]) -> pa.Table:
    """Examples as Arrow columns; letterbox, phrase ids and what is not read of a text stay behind."""
    rows = []
    for example in examples:
        row = {entry.name: getattr(example.text, entry.name) for entry in fields(EncodedText)}
        row["text"] = example.text.text[: example.text.text_read]
        row["pixels"] = None if example.pixels is None else example.pixels.tobytes()
        row["spans"] = [number for span in example.spans for number in span]
        row["boxes_canvas"] = example.boxes_canvas.ravel().tolist()
        row["box_types"] = list(example.box_types)
        row["boxes_annotated"] = example.boxes_annotated
        row["unknown_types"] = list(example.unknown_types)
        row["phrases"] = list(example.phrases)
        rows.append(row)
    return pa.Table.from_pylist(rows, schema=EXAMPLE_SCHEMA)


def table_to_examples(table: pa.Table, side: int) -> list[Example]:
    """The inverse of `examples_to_table` for canvases of `side` pixels."""
    examples = []
    for row in table.select(EXAMPLE_SCHEMA.names).to_pylist():
        pixels = row["pixels"]
        numbers = row["spans"]
        examples.append(
            Example(
                text=EncodedText(**{entry.name: row[entry.name] for entry in fields(EncodedText)}),
                pixels=None if pixels is None else np.frombuffer(pixels, np.uint8).reshape(side, side, 3),
                spans=tuple((a, b, k) for a, b, k in zip(*[iter(numbers)] * 3, strict=True)),
                boxes_canvas=np.asarray(row["boxes_canvas"], np.float32).reshape(-1, 4),
                box_types=tuple(row["box_types"]),
                boxes_annotated=row["boxes_annotated"],
                unknown_types=tuple(row["unknown_types"]),
                phrases=tuple(row["phrases"]),
            )
        )
    return examples
