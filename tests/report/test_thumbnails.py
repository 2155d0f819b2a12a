import base64
import io
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mnerqg.config_jobs import PicturesConfig
from mnerqg.report.thumbnails import Thumbnail, Thumbnails, bytes_a_post
from tests.archives import photo
from tests.builders import jpeg


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(4) as pool:
        yield pool


def opened(thumbnail: Thumbnail) -> tuple[Image.Image, int]:
    assert thumbnail.uri is not None
    head, _, data = thumbnail.uri.partition(",")
    assert head == "data:image/jpeg;base64"
    decoded = base64.b64decode(data)
    return Image.open(io.BytesIO(decoded)), len(decoded)


def test_pictures_stay_within_what_a_post_may_take(tmp_path: Path, pool: ThreadPoolExecutor) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (900, 1200, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(noise).save(buffer, "PNG")
    (tmp_path / "a.jpg").write_bytes(photo(1, (1600, 1200)))
    thumbnails = Thumbnails(PicturesConfig(roots=(str(tmp_path),)), 200, pool)
    (one,), many = thumbnails.make([["a.jpg"], [buffer.getvalue()] * 20])
    image, size = opened(one)
    assert (one.width, one.height, image.size) == (1600, 1200, (640, 480))
    assert size <= bytes_a_post(200)
    assert len(many) == 16  # max_per_post
    assert sum(opened(thumbnail)[1] for thumbnail in many) <= bytes_a_post(200)
    assert max(opened(many[0])[0].size) <= 300


def test_many_posts_share_what_there_is() -> None:
    assert 200 * bytes_a_post(200) * 4 / 3 < 13_000_000
    assert 5_000 * bytes_a_post(5_000) == 40_000_000
    assert bytes_a_post(0) == bytes_a_post(1) == bytes_a_post(200)


def test_upright_and_never_enlarged(tmp_path: Path, pool: ThreadPoolExecutor) -> None:
    thumbnails = Thumbnails(PicturesConfig(roots=(str(tmp_path),)), 1, pool)
    ((turned,), (dot,)) = thumbnails.make([[jpeg(40, 30, orientation=6)], [jpeg(1, 1)]])
    assert (turned.width, turned.height, opened(turned)[0].size) == (30, 40, (30, 40))
    assert opened(dot)[0].size == (1, 1)


def test_why_there_is_none(tmp_path: Path, pool: ThreadPoolExecutor) -> None:
    (tmp_path / "page.jpg").write_bytes(b"<html>")
    thumbnails = Thumbnails(PicturesConfig(roots=(str(tmp_path),), max_pixels=100), 1, pool)
    made = thumbnails.make(
        [[None, "gone.jpg", "/etc/passwd", "page.jpg", jpeg(), "http://169.254.169.254/x"], []]
    )
    problems = [thumbnail.problem or "" for thumbnail in made[0]]
    for problem, words in zip(
        problems,
        ("none:", "missing:", "forbidden:", "unreadable: not a picture", "too_large:", "forbidden:"),
        strict=True,
    ):
        assert problem.startswith(words)
    assert made[1] == []
