"""The pictures of the report: small, encoded once, and of a size that is settled beforehand."""

import base64
import io
from collections.abc import Sequence
from concurrent.futures import Executor
from dataclasses import dataclass

from PIL import Image

from mnerqg.config_jobs import PicturesConfig
from mnerqg.inputs.images import Pixels, decode_small
from mnerqg.inputs.picture_files import ImageProblem
from mnerqg.io.picture_store import PictureStore

_MOST_BYTES = 40_000_000
"""Of all pictures together, before base64 adds a third [chosen]."""
_BYTES_A_POST = range(6_000, 44_001)
_LEAST_BYTES = 2_700
_QUALITIES = (82, 68, 52, 38)
_SIDES = ((30_000, 640), (12_000, 420), (0, 300))
"""Longest edge in pixels of a picture for which so many bytes are left, or more."""


@dataclass(frozen=True, slots=True)
class Thumbnail:
    """A picture for the page, or why there is none. `width` and `height` are those of the whole upright picture."""

    uri: str | None = None
    width: int | None = None
    height: int | None = None
    problem: str | None = None


def bytes_a_post(posts: int) -> int:
    """How many bytes the pictures of one of so many posts may take together."""
    return min(max(_MOST_BYTES // max(posts, 1), _BYTES_A_POST[0]), _BYTES_A_POST[-1])


class Thumbnails:
    """Makes thumbnails of encoded pictures and of URIs, which are read only below the roots of `config`."""

    def __init__(self, config: PicturesConfig, posts: int, pool: Executor) -> None:
        self._config = config
        self._store = PictureStore(config)
        self._bytes = bytes_a_post(posts)
        self._pool = pool

    def make(self, posts: Sequence[Sequence[bytes | str | None]]) -> list[list[Thumbnail]]:
        """One a picture, for each of the posts; never raises."""
        flat = [
            (picture, max(self._bytes // len(pictures), _LEAST_BYTES))
            for pictures in posts
            for picture in pictures[: self._config.max_per_post]
        ]
        made = iter(self._pool.map(lambda one: self._thumbnail(*one), flat))
        return [[next(made) for _ in pictures[: self._config.max_per_post]] for pictures in posts]

    def _thumbnail(self, picture: bytes | str | None, most_bytes: int) -> Thumbnail:
        data = picture
        if not isinstance(data, bytes):
            fetched = self._store.fetch(picture)
            if fetched.data is None:
                return Thumbnail(problem=f"{fetched.status}: {fetched.error or 'the post has none'}")
            data = fetched.data
        side = next(side for least, side in _SIDES if most_bytes >= least)
        try:
            pixels, (width, height) = decode_small(data, side, self._config)
        except ImageProblem as problem:
            return Thumbnail(problem=f"{problem.status}: {problem}")
        return Thumbnail(_data_uri(_encoded(pixels, most_bytes)), width, height)


def _encoded(pixels: Pixels, most_bytes: int) -> bytes:
    """As JPEG of at most so many bytes: worse and worse, then smaller and smaller.

    WebP would be a third smaller, and takes seven times as long to write: 12 seconds more for 5,000 pictures.
    """
    image = Image.fromarray(pixels)
    while True:
        for quality in _QUALITIES:
            buffer = io.BytesIO()
            image.save(buffer, "JPEG", quality=quality)
            if buffer.tell() <= most_bytes or max(image.size) < 2:
                return buffer.getvalue()
        image = image.resize((max(1, image.width * 2 // 3), max(1, image.height * 2 // 3)))


def _data_uri(data: bytes) -> str:
    return f"data:image/jpeg;base64,{base64.b64encode(data).decode()}"
