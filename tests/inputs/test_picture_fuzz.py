"""Whatever becomes of a picture on its way, it gets a status: in bounded time and memory, and the process lives on."""

import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import NamedTuple

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from tests.pictures import encode, noisy

SECONDS, MIB = 2.0, 300
_WORKER = """
import resource, struct, sys, time
from mnerqg.inputs.images import decode_letterbox
from mnerqg.inputs.picture_files import ImageProblem

sys.stderr = open("/dev/null", "w")
start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
while head := sys.stdin.buffer.read(8):
    data = sys.stdin.buffer.read(struct.unpack(">Q", head)[0])
    before = time.process_time()
    try:
        canvas = decode_letterbox(data, 64)
        assert canvas.pixels.shape == (64, 64, 3)
        status = b"ok"
    except ImageProblem as problem:
        assert "\\n" not in str(problem)
        status = problem.status.encode()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - start
    sys.stdout.buffer.write(struct.pack(">10sdQ", status, time.process_time() - before, peak))
    sys.stdout.buffer.flush()
"""


class Answer(NamedTuple):
    status: str
    seconds: float
    mib: float


@pytest.fixture(scope="module")
def decoder() -> Iterator[Callable[[bytes], Answer]]:
    """Decodes in one process, whose memory nothing else takes."""
    with subprocess.Popen(
        [sys.executable, "-c", _WORKER], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as worker:
        assert worker.stdin is not None
        assert worker.stdout is not None

        def ask(data: bytes) -> Answer:
            worker.stdin.write(struct.pack(">Q", len(data)) + data)
            worker.stdin.flush()
            answer = worker.stdout.read(26)
            assert len(answer) == 26, f"the decoder died of {data!r}"
            status, seconds, peak = struct.unpack(">10sdQ", answer)
            return Answer(status.rstrip(b"\0").decode(), seconds, peak / 1024)

        yield ask
        worker.stdin.close()
    assert worker.returncode == 0


def exif() -> Image.Exif:
    tags = Image.Exif()
    tags[0x0112] = 6
    tags[0x010E] = "a description"
    return tags


PICTURE = noisy(96, 80)
VALID: dict[str, bytes] = {
    "jpeg": encode(PICTURE, "JPEG", exif=exif(), icc_profile=b"p" * 300),
    "progressive": encode(PICTURE, "JPEG", progressive=True),
    "cmyk": encode(PICTURE.convert("CMYK"), "JPEG"),
    "png": encode(PICTURE.convert("RGBA"), "PNG", exif=exif(), icc_profile=b"p" * 300),
    "palette": encode(PICTURE.quantize(32), "PNG", transparency=3),
    "webp": encode(PICTURE, "WEBP", exif=exif()),
    "lossless": encode(PICTURE.convert("RGBA"), "WEBP", lossless=True),
    "moving": encode(PICTURE, "WEBP", save_all=True, append_images=[Image.new("RGB", (96, 80))]),
    "gif": encode(PICTURE, "GIF", save_all=True, append_images=[Image.new("RGB", (96, 80))]),
    "avif": encode(PICTURE, "AVIF", exif=exif()),
    "moving avif": encode(PICTURE, "AVIF", save_all=True, append_images=[Image.new("RGB", (96, 80))]),
    "bmp": encode(PICTURE, "BMP"),
    "tiff": encode(PICTURE, "TIFF", compression="tiff_lzw"),
}


@st.composite
def mutated(draw: st.DrawFn) -> bytes:
    """A valid picture, a few times cut, flipped, doubled or mixed with another."""
    data = VALID[draw(st.sampled_from(sorted(VALID)))]
    for _ in range(draw(st.integers(1, 4))):
        # Heads are short, and there most can go wrong.
        near = draw(st.sampled_from([40, 400, len(data)]))
        place = draw(st.integers(0, max(0, min(near, len(data)) - 1)))
        length = draw(st.integers(1, 64))
        match draw(st.sampled_from(["cut", "flip", "write", "double", "drop", "graft", "extreme"])):
            case "cut":
                data = data[: max(1, len(data) - draw(st.integers(0, len(data) // 2)))]
            case "flip":
                data = data[:place] + bytes([data[place] ^ 1 << draw(st.integers(0, 7))]) + data[place + 1 :]
            case "write":
                data = data[:place] + draw(st.binary(min_size=1, max_size=16)) + data[place + length :]
            case "double":
                data = data[: place + length] + data[place:]
            case "drop":
                data = data[:place] + data[place + length :]
            case "graft":
                other = VALID[draw(st.sampled_from(sorted(VALID)))]
                data = data[:place] + other[: draw(st.integers(1, len(other)))] + data[place:]
            case "extreme":
                value = draw(st.sampled_from([b"\xff\xff", b"\0\0", b"\x7f\xff", b"\x80\0", b"\xff" * 4]))
                data = data[:place] + value + data[place + len(value) :]
        data = data or b"\0"
    return data


@given(data=mutated())
@settings(max_examples=500, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
def test_any_mutation_gets_a_status(decoder: Callable[[bytes], Answer], data: bytes) -> None:
    answer = decoder(data)
    assert answer.status in ("ok", "unreadable", "too_large")
    assert answer.seconds < SECONDS
    assert answer.mib < MIB


def test_valid_pictures_are_ok(decoder: Callable[[bytes], Answer]) -> None:
    assert {name: decoder(data).status for name, data in VALID.items()} == dict.fromkeys(VALID, "ok")
