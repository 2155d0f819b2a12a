"""YAML files and `--section.key value` on the command line become settings (`config`).

A recipe (`jobs/configs/*.yaml`) states what differs from the defaults; the command line overrides it. An unknown key
or a bad value raises `ConfigError` before anything starts.
"""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from mnerqg.config_types import Section
from mnerqg.errors import ConfigError, one_line

S = TypeVar("S", bound=Section)


class _Loader(yaml.SafeLoader):
    """Reads YAML, but refuses a key that is written twice, of which the first would be lost without a word."""

    def __init__(self, text: str, source: str) -> None:
        super().__init__(text)
        self.name = source  # what PyYAML's own errors name, too

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        keys = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                continue  # a list or mapping as a key: refused when it is constructed
            if key.value in keys:
                raise ConfigError(
                    f"{self.name}: line {key.start_mark.line + 1}: {key.value!r} is written a second time; "
                    "write it once, with all that belongs to it"
                )
            keys.add(key.value)
        return node


class _Dumper(yaml.SafeDumper):
    """Writes what `_Loader` reads back: it quotes the strings that are numbers there."""


# PyYAML follows YAML 1.1, where 1e-4 is a string; for everybody, and for YAML 1.2, it is a number.
for _kind in (_Loader, _Dumper):
    _kind.add_implicit_resolver(
        "tag:yaml.org,2002:float",
        re.compile(r"[-+]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)[eE][-+]?[0-9]+$"),
        list("-+.0123456789"),
    )


def load_config(section: type[S], text: str, overrides: Sequence[str] = (), *, source: str = "config") -> S:
    """Build `section` from YAML `text` and `--a.b value` (or `--a.b=value`) overrides.

    Raises:
        ConfigError: not YAML, an unknown key, a missing or a bad value; the message names the key.
    """
    return _build(section, [(source, _read_mapping(text, source))], overrides)


def load_files(section: type[S], paths: Sequence[Path], overrides: Sequence[str] = ()) -> S:
    """As `load_config`, from files of which a later one overrides the earlier ones key by key.

    Raises:
        ConfigError: there is no such file, or as `load_config`; the message names the file.
    """
    layers = [(str(path), _read_mapping(_read_text(path), str(path))) for path in paths]
    return _build(section, layers, overrides)


def load_file(section: type[S], path: Path | None, overrides: Sequence[str] = ()) -> S:
    """`load_files` of the one file that --config names, or the defaults where it is None."""
    return load_files(section, [] if path is None else [path], overrides)


def find_recipe(name: Path, folder: Path) -> Path:
    """The file that --config names: a path, or the name of a recipe in `folder`, such as offline or variants/text.

    Raises:
        ConfigError: it is neither.
    """
    if name.is_file():
        return name
    recipe = folder / f"{name}.yaml"
    if recipe.is_file():
        return recipe
    recipes = ", ".join(sorted(entry.stem for entry in folder.glob("*.yaml")))
    raise ConfigError(f"--config {name} does not exist; recipes in jobs/configs: {recipes}")


def _read_text(path: Path) -> str:
    if not path.is_file():
        raise ConfigError(f"--config {path} does not exist; give the path of a YAML file of settings")
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is not UTF-8 text: {error}; save it as UTF-8") from None


def _read_yaml(text: str, source: str) -> Any:
    return _Loader(text, source).get_single_data()


def _read_mapping(text: str, source: str) -> dict[str, Any]:
    try:
        values = _read_yaml(text, source)
    except yaml.YAMLError as error:
        raise ConfigError(f"{source} is not valid YAML: {one_line(error)}") from None
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise ConfigError(f"{source} holds a {type(values).__name__}; it must be a mapping of sections")
    return values


def _build(section: type[S], layers: Sequence[tuple[str, dict[str, Any]]], overrides: Sequence[str]) -> S:
    """The section from layers of (source, values) and overrides, the later ones over the earlier ones."""
    values: dict[str, Any] = {}
    for _, layer in layers:
        values = _merge(values, layer)
    given = dict(_parse_overrides(overrides))
    for key, value in given.items():
        _set(values, key, value)
    try:
        return section.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        place = (
            "" if any(f"{key}.".startswith(f"{name}.") for name in given) else _place(layers, first["loc"])
        )
        raise ConfigError(place + _one_line(section, first)) from None


def _merge(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    merged = dict(below)
    for key, value in above.items():
        inner = below.get(key)
        is_section = isinstance(value, dict)
        merged[key] = _merge(inner if isinstance(inner, dict) else {}, value) if is_section else value
    return merged


def _place(layers: Sequence[tuple[str, dict[str, Any]]], path: Sequence[str | int]) -> str:
    """The last source that says something of a key, as the beginning of a message; the last one where none does."""
    sources = [source for source, values in layers if _says(values, path)] or [s for s, _ in layers]
    return f"{sources[-1] if sources else 'the command line'}: "


def _says(values: Any, path: Sequence[str | int]) -> bool:
    for part in path:
        if not isinstance(values, dict):
            break  # the value that `path` leads into, such as a list
        if part not in values:
            return False
        values = values[part]
    return True


def dump_config(config: Section) -> str:
    """The whole configuration as YAML; `load_config` reads it back to an equal object."""
    return yaml.dump(config.model_dump(mode="json"), Dumper=_Dumper, sort_keys=False, allow_unicode=True)


def _parse_overrides(overrides: Sequence[str]) -> list[tuple[str, Any]]:
    pairs: list[tuple[str, Any]] = []
    rest = list(overrides)
    while rest:
        flag = rest.pop(0)
        if not flag.startswith("--") or len(flag) == 2:
            raise ConfigError(f"unexpected argument {flag!r}; overrides are written --section.key value")
        key, equals, value = flag[2:].partition("=")
        key = key.replace("-", "_")  # --max-failed is what people type
        if not equals:
            if not rest or rest[0].startswith("--"):
                raise ConfigError(f"--{key} has no value; write --{key} VALUE")
            value = rest.pop(0)
        try:
            pairs.append((key, _read_yaml(value, f"--{key}")))
        except yaml.YAMLError:
            pairs.append((key, value))
    return pairs


def _set(values: dict[str, Any], key: str, value: Any) -> None:
    *sections, name = key.split(".")
    for section in sections:
        if values.get(section) is None:
            values[section] = {}
        inner = values[section]
        if not isinstance(inner, dict):
            raise ConfigError(f"--{key}: {section} is a value, not a section")
        values = inner
    values[name] = value


def _one_line(section: type[BaseModel], error: ErrorDetails) -> str:
    path = [str(part) for part in error["loc"]]
    key = ".".join(path)
    if error["type"] == "extra_forbidden":
        allowed = ", ".join(_fields(section, path[:-1]))
        return f"unknown key {key}; allowed here: {allowed}"
    if error["type"] == "missing":
        return f"{key} is not set; give it in the YAML or as --{key} VALUE"
    message = error["msg"].removeprefix("Value error, ")
    if error["type"] == "value_error":
        return f"{key}.{message}" if key else message
    return f"{key} is {error['input']!r}: {message[0].lower()}{message[1:]}"


def _fields(section: type[BaseModel], path: list[str]) -> list[str]:
    for name in path:
        inner = section.model_fields[name].annotation
        if not (isinstance(inner, type) and issubclass(inner, BaseModel)):
            break
        section = inner
    return list(section.model_fields)
