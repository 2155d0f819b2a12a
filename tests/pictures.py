"""Pictures for the tests of decoding, and ways to damage them."""

import io
import struct
import zlib
from typing import Any

import numpy as np
from PIL import Image


def encode(image: Image.Image, file_format: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, file_format, **options)
    return buffer.getvalue()


def noisy(width: int = 64, height: int = 64) -> Image.Image:
    """A picture of which every row takes as many bytes as any other, and none is gray."""
    values = np.random.default_rng(0).integers(0, 90, (height, width, 3), np.uint8)
    values[:, :, 0] += 150
    return Image.fromarray(values)


def chunk(name: bytes, content: bytes, *, check: int = 0) -> bytes:
    """A chunk of a PNG, with a wrong checksum where `check` is not 0."""
    checksum = zlib.crc32(name + content) ^ check
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", checksum)


def with_chunk(png: bytes, extra: bytes) -> bytes:
    """A PNG with a chunk after its header."""
    return png[:33] + extra + png[33:]


def with_segment(jpeg: bytes, kind: int, content: bytes) -> bytes:
    """A JPEG with a segment after its start."""
    return jpeg[:2] + struct.pack(">BBH", 255, kind, len(content) + 2) + content + jpeg[2:]
