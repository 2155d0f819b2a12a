import struct
from contextlib import suppress

import pytest
from PIL import Image

from mnerqg.inputs.avif import largest_frame
from tests.pictures import encode


def claiming(data: bytes, width: int, height: int) -> bytes:
    """An AVIF whose container says another size than its stream."""
    place = data.index(b"ispe") + 8
    return data[:place] + struct.pack(">II", width, height) + data[place + 8 :]


@pytest.mark.parametrize("size", [(1, 1), (320, 240), (3000, 17), (255, 256)])
def test_the_size_is_that_of_the_stream(size: tuple[int, int]) -> None:
    data = encode(Image.new("RGB", size, "red"), "AVIF", speed=10)
    assert largest_frame(data) == size
    assert largest_frame(claiming(data, 7, 5)) == size


def test_transparency_and_animations() -> None:
    frames = [Image.new("RGBA", (40, 30), colour) for colour in ("red", "#00ff0080")]
    assert largest_frame(encode(frames[1], "AVIF", speed=10)) == (40, 30)
    moving = encode(frames[0], "AVIF", speed=10, save_all=True, append_images=frames[1:])
    assert largest_frame(moving) == (40, 30)
    # A reader that goes by the tracks sees no items.
    assert largest_frame(moving.replace(b"iloc", b"skip")) == (40, 30)


def test_damaged_files() -> None:
    data = encode(Image.new("RGB", (40, 30), "red"), "AVIF", speed=10)
    for place in range(len(data)):
        for damaged in (data[:place], data[:place] + b"\xff" + data[place + 1 :]):
            with suppress(ValueError):
                largest_frame(damaged)


def test_items_that_lie_upon_each_other() -> None:
    """Some kilobytes of table could otherwise mean gigabytes of items."""
    entries = b"".join(struct.pack(">HHHII", number, 0, 1, 0, 0) for number in range(5000))
    iloc = b"\0\0\0\0" + struct.pack(">HH", 0x4400, 5000) + entries
    box = struct.pack(">I", len(iloc) + 8) + b"iloc" + iloc
    meta = b"\0\0\0\0" + box
    with pytest.raises(ValueError, match="lie upon each other"):
        largest_frame(struct.pack(">I", len(meta) + 8) + b"meta" + meta)


def test_a_stream_of_countless_parts() -> None:
    data = encode(Image.new("RGB", (40, 30), "red"), "AVIF", speed=10)
    units = b"\x7a\x00" * 20_000  # padding of no bytes
    place = data.index(b"iloc")
    head, tail = data[: place + 4], data[place + 4 :]
    # The one extent's length is the last field of the box.
    length = struct.unpack(">I", data[place - 4 : place])[0] - 8
    grown = struct.pack(">I", struct.unpack(">I", tail[length - 4 : length])[0] + len(units))
    with pytest.raises(ValueError, match="more than 10,000 parts"):
        largest_frame(head + tail[: length - 4] + grown + tail[length:] + units)
