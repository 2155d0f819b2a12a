"""How large the frames in an AVIF file are, by the AV1 streams themselves.

The container says a size, too, and Pillow goes by that one; but libavif decodes whatever frame is there before it
scales it to what the container says, so that a file of 2 kB can take gigabytes.

Sources: ISO/IEC 14496-12 (boxes), section 8.11.3 for `iloc`; "AV1 Bitstream & Decoding Process Specification",
sections 5.3 to 5.5.
"""

from collections.abc import Iterator

_MAX_UNITS = 10_000
"""Units (OBU) that are looked at in one file; a still picture has half a dozen [chosen]."""
_SEQUENCE_HEADER = 1
_TRACK = (b"trak", b"mdia", b"minf", b"stbl")


def largest_frame(data: bytes) -> tuple[int, int]:
    """Width and height of the largest frame that any stream of an AVIF file may hold; (0, 0) where none is found.

    Raises:
        ValueError: the file has so many parts that it is no picture.
    """
    sizes = [(0, 0)]
    units = 0
    for stream in _streams(data):
        for kind, content in _units(stream):
            units += 1
            if units > _MAX_UNITS:
                raise ValueError(f"it has more than {_MAX_UNITS:,} parts")
            if kind == _SEQUENCE_HEADER:
                sizes.append(_frame_size(bytes(content[:256])))
    return max(sizes, key=lambda size: size[0] * size[1])


# ---- the container -------------------------------------------------------------------------------


def _boxes(view: memoryview) -> Iterator[tuple[bytes, memoryview]]:
    """Type and content of the boxes in `view`."""
    place = 0
    while place + 8 <= len(view):
        size, kind, head = _number(view, place, 4), bytes(view[place + 4 : place + 8]), 8
        if size == 1:
            size, head = _number(view, place + 8, 8), 16
        end = place + size if size else len(view)
        if end < place + head:
            return
        yield kind, view[place + head : end]
        place = end


def _streams(data: bytes) -> Iterator[memoryview]:
    """The bytes of all items and the first ones of all tracks."""
    whole = memoryview(data)
    for kind, content in _boxes(whole):
        if kind == b"meta":
            inner = list(_boxes(content[4:]))
            stored = next((part for name, part in inner if name == b"idat"), whole[:0])
            for name, part in inner:
                if name == b"iloc":
                    yield from _items(part, whole, stored)
        elif kind == b"moov":
            for table in _sample_tables(content):
                for name, part in _boxes(table):
                    if name in (b"stco", b"co64"):
                        yield whole[_number(part, 8, 4 if name == b"stco" else 8) :]


def _sample_tables(view: memoryview, path: tuple[bytes, ...] = _TRACK) -> Iterator[memoryview]:
    for kind, content in _boxes(view):
        if kind == path[0]:
            if len(path) == 1:
                yield content
            else:
                yield from _sample_tables(content, path[1:])


def _items(view: memoryview, whole: memoryview, stored: memoryview) -> Iterator[memoryview]:
    """The bytes of each item that an `iloc` box tells of."""
    version = view[0] if view else 0
    reader = _Bytes(view, 4)
    sizes = reader.take(2)
    offset_size, length_size, base_size = sizes >> 12, sizes >> 8 & 15, sizes >> 4 & 15
    index_size = sizes & 15 if version else 0
    wide = 4 if version > 1 else 2
    budget = 2 * len(whole)
    for _ in range(min(reader.take(wide), len(view))):
        reader.take(wide)  # its number
        source = stored if version and reader.take(2) & 15 == 1 else whole
        reader.take(2)
        base = reader.take(base_size)
        parts = []
        for _ in range(min(reader.take(2), len(view))):
            reader.take(index_size)
            start, length = base + reader.take(offset_size), reader.take(length_size)
            parts.append(source[start : start + length if length else len(source)])
        budget -= sum(map(len, parts))
        if budget < 0:
            raise ValueError("its items lie upon each other")
        yield parts[0] if len(parts) == 1 else memoryview(b"".join(parts))


class _Bytes:
    """Big-endian numbers one after another; beyond the end they are 0."""

    def __init__(self, view: memoryview, place: int) -> None:
        self._view = view
        self._place = place

    def take(self, size: int) -> int:
        self._place += size
        return _number(self._view, self._place - size, size)


def _number(view: memoryview, place: int, size: int) -> int:
    return int.from_bytes(view[place : place + size], "big")


# ---- the streams ---------------------------------------------------------------------------------


def _units(view: memoryview) -> Iterator[tuple[int, memoryview]]:
    """Type and content of the open bitstream units (OBU) in `view`, up to what is none."""
    place = 0
    while place < len(view):
        head = view[place]
        if head & 0x80:
            return
        place += 2 if head & 4 else 1
        size = len(view) - place
        if head & 2:
            size, place = _leb128(view, place)
        yield head >> 3 & 15, view[place : place + size]
        place += size


def _leb128(view: memoryview, place: int) -> tuple[int, int]:
    value = 0
    for index, byte in enumerate(view[place : place + 8]):
        value |= (byte & 127) << 7 * index
        if not byte & 128:
            return value, place + index + 1
    return len(view), len(view)


def _frame_size(header: bytes) -> tuple[int, int]:
    """The largest frame that a sequence header allows."""
    bits = _Bits(header)
    bits.take(4)
    if bits.take(1):  # reduced, as for still pictures
        bits.take(5)
    else:
        _skip_operating_points(bits)
    width_bits, height_bits = bits.take(4) + 1, bits.take(4) + 1
    return bits.take(width_bits) + 1, bits.take(height_bits) + 1


def _skip_operating_points(bits: "_Bits") -> None:
    delay_bits = 0
    if bits.take(1):  # timing
        bits.take(64)
        if bits.take(1):
            bits.skip_uvlc()
        if bits.take(1):  # the decoder's model
            delay_bits = bits.take(5) + 1
            bits.take(32 + 5 + 5)
    has_display_delay = bits.take(1)
    for _ in range(bits.take(5) + 1):
        bits.take(12)
        if bits.take(5) > 7:
            bits.take(1)
        if delay_bits and bits.take(1):
            bits.take(2 * delay_bits + 1)
        if has_display_delay and bits.take(1):
            bits.take(4)


class _Bits:
    """Unsigned numbers of so many bits, the highest first; beyond the end they are 0."""

    def __init__(self, data: bytes) -> None:
        self._value = int.from_bytes(data, "big")
        self._left = 8 * len(data)

    def take(self, count: int) -> int:
        self._left -= count
        if self._left < 0:
            return 0
        return self._value >> self._left & (1 << count) - 1

    def skip_uvlc(self) -> None:
        zeros = 0
        while zeros < 32 and not self.take(1):
            zeros += 1
        self.take(zeros if zeros < 32 else 0)
