"""A dataset and a recipe that train in seconds, for the tests of what happens around training."""

from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from PIL import Image

from mnerqg.datasets.prepared import write_split
from mnerqg.schema import Box, Post, Span


def posts(count: int) -> Iterator[Post]:
    """Every other one names somebody and shows them; some have no picture, some no annotated boxes."""
    for number in range(count):
        pixels = np.random.default_rng(number).integers(0, 256, (48, 64, 3), dtype=np.uint8)
        file = BytesIO()
        Image.fromarray(pixels).save(file, "JPEG")
        yield Post(
            post_id=str(number),
            text="Ada visits Oslo" if number % 2 else "nothing to name",
            image=file.getvalue() if number % 5 else None,
            entities=(Span(0, 3, "PER"), Span(11, 15, "LOC")) if number % 2 else (),
            boxes=(Box("PER", 4, 4, 40, 30),) if number % 2 else (),
            boxes_annotated=number % 3 != 0,
        )


def write_dataset(folder: Path, *, train: int, valid: int) -> None:
    """The two splits, in files of 20 posts."""
    for split, count in (("train", train), ("valid", valid)):
        write_split(posts(count), str(folder / split), rows_per_file=20)


def write_recipe(path: Path, tiny_model: Path, **train: Any) -> Path:
    """A recipe with the encoder of the test's tiny model; `train` is its section train."""
    recipe = {
        "queries": "keyword",
        "model": {
            "encoder": str(tiny_model.parent / "encoder"),
            "max_length": 64,
            "backbone": "resnet10t",
            "width": 32,
            "heads": 4,
            "pyramid_width": 32,
            "pyramid_depth": 1,
            "image_side": 64,
        },
        "train": {"precision": "fp32", "gpus_per_worker": 0, "threads_per_worker": 1, **train},
    }
    path.write_text(yaml.safe_dump(recipe))
    return path
