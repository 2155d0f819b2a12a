"""What a file is by its first bytes, whatever it is called: a picture, or what else lies where pictures should."""

import re

from mnerqg.config_jobs import PictureFormat

_HEAD_BYTES = 1024
_BOM = b"\xef\xbb\xbf"

_PICTURES: tuple[tuple[re.Pattern[bytes], PictureFormat], ...] = (
    (re.compile(rb"\xff\xd8\xff"), "jpeg"),
    (re.compile(rb"\x89PNG\r\n\x1a\n"), "png"),
    (re.compile(rb"GIF8[79]a"), "gif"),
    (re.compile(rb"RIFF....WEBP", re.DOTALL), "webp"),
    (re.compile(rb"BM.{4}.{4}.{4}[\x0c\x10\x28\x34\x38\x40\x6c\x7c]\0\0\0", re.DOTALL), "bmp"),
    (re.compile(rb"II\*\0|MM\0\*|II\+\0|MM\0\+"), "tiff"),
)
_AVIF_BRANDS = {b"avif", b"avis"}
_HEIC_BRANDS = {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs", b"mif1", b"msf1"}

_OTHERS: tuple[tuple[re.Pattern[bytes], str], ...] = (
    (re.compile(rb"%PDF-"), "a PDF document"),
    (re.compile(rb"\x1aE\xdf\xa3"), "a video (Matroska or WebM)"),
    (re.compile(rb"RIFF....AVI ", re.DOTALL), "a video (AVI)"),
    (re.compile(rb"\0\0\x01[\xb3\xba]"), "a video (MPEG)"),
    (re.compile(rb"FLV\x01"), "a video (Flash)"),
    (re.compile(rb"OggS"), "a video or sound (Ogg)"),
    (re.compile(rb"ID3|RIFF....WAVE|fLaC", re.DOTALL), "a sound"),
    (re.compile(rb"\xff\x0a|\0\0\0\x0cJXL \r\n\x87\n"), "a JPEG XL picture"),
    (re.compile(rb"\xff\x4f\xff\x51|\0\0\0\x0cjP  \r\n\x87\n"), "a JPEG 2000 picture"),
    (re.compile(rb"\0\0[\x01\x02]\0[^\0]\0"), "an icon (ICO)"),
    (re.compile(rb"8BPS"), "a Photoshop document"),
    (re.compile(rb"%!PS|\xc5\xd0\xd3\xc6"), "a PostScript document"),
    (re.compile(rb"PK\x03\x04"), "a ZIP archive or an office document"),
    (re.compile(rb"\x1f\x8b"), "something compressed with gzip"),
    (re.compile(rb"version https://git-lfs"), "a pointer of Git LFS: the file itself was not fetched"),
    (re.compile(rb"\0+\Z"), "nothing but zero bytes"),
)
_TEXTS: tuple[tuple[re.Pattern[bytes], str], ...] = (
    (
        re.compile(rb"<svg|<\?xml.*<svg|<!--.*<svg|<!DOCTYPE svg", re.DOTALL | re.IGNORECASE),
        "an SVG drawing",
    ),
    (re.compile(rb"<(!DOCTYPE html|html|head|body|title|script|meta|div|p|h1)\b", re.IGNORECASE), "an HTML page"),
    (re.compile(rb"<\?xml.*<html", re.DOTALL | re.IGNORECASE), "an HTML page"),
    (re.compile(rb"<(\?xml|[A-Za-z])"), "an XML document"),
    (re.compile(rb"[\[{]"), "JSON"),
)  # fmt: skip


def format_of(data: bytes) -> PictureFormat | None:
    """The format of a picture, None for anything that is none of those that are read."""
    head = data[:_HEAD_BYTES]
    for signature, name in _PICTURES:
        if signature.match(head):
            return name
    brands = _brands(head)
    if brands & _AVIF_BRANDS:
        return "avif"
    return "heic" if brands & _HEIC_BRANDS else None


def looks_like(data: bytes) -> str:
    """In words what `data`, which is no picture that is read, seems to be."""
    head = data[:_HEAD_BYTES]
    if b"ftyp" in head[4:8]:
        return "a video (MP4 or QuickTime)"
    text = head.removeprefix(_BOM).lstrip()
    for signature, words in (*_OTHERS, *_TEXTS):
        if signature.match(text if (signature, words) in _TEXTS else head):
            return words
    if _is_text(head):
        return f"text ({' '.join(head[:40].decode('utf-8', 'replace').split())!r})"
    return f"of no format that is known (it begins with {head[:8].hex(' ')})"


def _brands(head: bytes) -> set[bytes]:
    """The brands of an ISO base media file, the container of AVIF, HEIC and MP4."""
    if head[4:8] != b"ftyp":
        return set()
    box = head[8 : max(12, min(int.from_bytes(head[:4], "big"), len(head)))]
    return {box[:4], *(box[start : start + 4] for start in range(8, len(box), 4))}


def _is_text(head: bytes) -> bool:
    try:
        text = head.decode()
    except UnicodeDecodeError as error:
        if error.start < len(head) - 3:  # else a character is cut by the end of the head
            return False
        text = head[: error.start].decode()
    return all(character.isprintable() or character.isspace() for character in text)
