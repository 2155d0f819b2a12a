"""Paths as people write them."""

import os
from pathlib import Path


def place(text: str) -> str:
    """A path or URI, of which `~` at the beginning is the home directory, also where no shell has seen it."""
    return os.path.expanduser(text)  # noqa: PTH111, a URI is no Path


def local_place(text: str) -> Path:
    """`place`, for what has to lie on this machine."""
    return Path(place(text))
