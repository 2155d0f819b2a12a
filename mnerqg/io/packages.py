"""`package:NAME/PATH`: a file or folder inside an installed Python package, which is not imported for it.

`package:NAME` is also a model that several packages carry together (`io.slices`).
"""

import importlib.util
from pathlib import Path, PurePosixPath

from mnerqg.errors import ModelError
from mnerqg.io.slices import SLICED_MODELS, joined

PREFIX = "package:"


def is_package(value: str) -> bool:
    """Whether a setting is of the form `package:NAME/PATH`, right or wrong."""
    return value.startswith(PREFIX)


def package_path(value: str, *, key: str) -> Path:
    """The place that `value` names; without a PATH it is the package's folder.

    Args:
        value: `package:NAME` or `package:NAME/PATH`. NAME is what one imports, PATH leads down from its folder; or
            it is one of `io.slices.SLICED_MODELS`.
        key: the setting that has this value, for the errors.

    Raises:
        ModelError: no such name, a package that is not installed, or a path that it does not have.
    """
    name, _, inside = value.removeprefix(PREFIX).partition("/")
    if name in SLICED_MODELS and not inside:
        return joined(name, key=key, value=value)
    # A name with a dot would import the package above it.
    if not name.isidentifier():
        raise ModelError(
            f"{key} is {value!r}, where {name!r} is no name of a package; write package:NAME or package:NAME/PATH "
            "with the NAME that Python imports"
        )
    spec = importlib.util.find_spec(name)
    if spec is None or not spec.submodule_search_locations:
        raise ModelError(
            f"{key} is {value!r}, but the package {name} is not installed; run pip install {name.replace('_', '-')}"
        )
    parts = PurePosixPath(inside)
    if parts.is_absolute() or ".." in parts.parts:
        raise ModelError(f"{key} is {value!r}, whose path leads out of the package; name a place inside it")
    for folder in spec.submodule_search_locations:
        if (place := Path(folder) / parts).exists():
            return place
    raise ModelError(f"{key} is {value!r}, but the package {name} holds no {inside}; name a place inside it")
