"""What every job shares: help that prints the settings, tables for people, errors as one line and an exit code."""

import argparse
import signal
import sys
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from inspect import cleandoc
from itertools import zip_longest
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, NoReturn, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from mnerqg.errors import MnerqgError

WIDTH = 100
"""Columns of the help."""

_NAMES_SHOWN = 20
_INTERRUPTED = 128 + signal.SIGINT
_SOURCES = "[chosen] marks what the paper leaves open, [FA-VG] what is that of Yang et al. 2019."
_SAMPLES = 2  # a longer list is shown by its first members


def run(
    main: Callable[[list[str]], None],
    *,
    interrupted: str = "what is written is safe: the same command goes on from there",
) -> NoReturn:
    """Call `main` with the command line and exit: 0, or the error's code after one line on stderr; of Ctrl-C 130.

    Args:
        main: the job.
        interrupted: what is safe after Ctrl-C, and how to go on.
    """
    try:
        main(sys.argv[1:])
    except KeyboardInterrupt:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # the way out takes a second or two, and is under way
        sys.stdout.flush()
        print(f"\ninterrupted; {interrupted}", file=sys.stderr)
        sys.exit(_INTERRUPTED)
    except MnerqgError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    sys.exit(0)


# ---- help -----------------------------------------------------------------------------------------------


class HelpFormatter(argparse.RawDescriptionHelpFormatter):
    """Of the same width in every terminal, so that the settings below the options stand as they were laid out."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=26, width=WIDTH)


def job_parser(
    prog: str, description: str | None, settings: type[BaseModel] | None = None, *, config: bool = True
) -> argparse.ArgumentParser:
    """The parser of a job, to which the job adds its own options.

    `parse_known_args` leaves the settings for `config_files`: so that none is taken for the beginning of an option,
    options cannot be abbreviated.

    Args:
        prog: such as `jobs/train.py`; an installed command, such as mnerqg-train, goes by its own name.
        description: the docstring of the job.
        settings: the section whose settings the help prints, those of its sections under their names; none where the
            job takes no settings.
        config: whether the job reads settings from a YAML, too, which its --config names.
    """
    called = Path(sys.argv[0]).name
    return argparse.ArgumentParser(
        prog=called if called.startswith("mnerqg") else prog,
        description=_filled(description or ""),
        epilog=None if settings is None else describe_settings(settings, config=config),
        formatter_class=HelpFormatter,
        allow_abbrev=False,
    )


def add_verbose(parser: argparse.ArgumentParser) -> None:
    """The option of the jobs that run on Ray."""
    parser.add_argument("--verbose", action="store_true", help="print all that Ray says, its tables included")


def _filled(text: str) -> str:
    return "\n\n".join(textwrap.fill(paragraph, WIDTH) for paragraph in cleandoc(text).split("\n\n"))


def describe_settings(settings: type[BaseModel], *, config: bool = True) -> str:
    """Every setting with its type, default and meaning, grouped as in the YAML."""
    places = "on the command line" + (" or in the YAML of --config" if config else "")
    head = f"settings, each as --key VALUE {places}. A value is written as in YAML: null, true, [a, b]."
    lines = list(_group(settings, ""))
    if any("[chosen]" in line or "[FA-VG]" in line for line in lines):
        head = f"{head} {_SOURCES}"
    return "\n".join([_filled(head), *lines])


def _group(section: type[BaseModel], prefix: str) -> Iterator[str]:
    """The lines of a section: its own settings, then its sections."""
    inner: dict[str, type[BaseModel]] = {}
    for name, field in section.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            inner[name] = field.annotation
        else:
            yield from _setting(prefix + name, field)
    for name, below in inner.items():
        meaning = cleandoc(below.__doc__ or "").partition("\n\n")[0]
        yield f"\n{textwrap.fill(f'{prefix}{name}: {meaning}', WIDTH)}"
        yield from _group(below, f"{prefix}{name}.")


def _setting(key: str, field: FieldInfo) -> Iterator[str]:
    default = "required" if field.is_required() else f"default: {_as_yaml(field.get_default())}"
    head = f"--{key}  ({type_in_words(field.annotation, field.metadata)}; {default})"
    yield textwrap.fill(head, WIDTH, initial_indent=" " * 2, subsequent_indent=" " * 6)
    yield textwrap.fill(field.description or "", WIDTH, initial_indent=" " * 6, subsequent_indent=" " * 6)


def _as_yaml(value: Any) -> str:
    """A default as it is written in YAML."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, tuple):
        shown = [_as_yaml(one) for one in value[:_SAMPLES]] + ["…"] * (len(value) > _SAMPLES)
        return f"[{', '.join(shown)}]"
    if isinstance(value, dict):
        return f"{{{', '.join(f'{key}: {_as_yaml(one)}' for key, one in value.items())}}}"
    return f"{value}" or "''"


def type_in_words(annotation: Any, metadata: Sequence[Any] = (), *, many: bool = False) -> str:
    """A type as a person reads it, such as "null or whole number above 0" or "one of: fp32, bf16".

    Args:
        annotation: of a field of a section.
        metadata: what `Annotated` adds: the limits of a number.
        many: in the plural.
    """
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        added = [
            entry
            for one in arguments[1:]
            for entry in (one.metadata if isinstance(one, FieldInfo) else [one])
        ]
        return type_in_words(arguments[0], added, many=many)
    if origin in (Union, UnionType):
        kinds = sorted(
            arguments, key=lambda kind: kind is not NoneType
        )  # null first, the others as they stand
        return " or ".join(type_in_words(kind, many=many) for kind in kinds)
    if origin is Literal:
        choices = ", ".join(map(str, arguments))
        return choices if many else f"one of: {choices}"
    if origin is tuple:
        count = "" if arguments[1:] == (...,) else f"{len(arguments)} "
        return f"list{'s' * many} of {count}{type_in_words(arguments[0], many=True)}"
    if origin is dict:
        return f"mapping{'s' * many} of {' to '.join(type_in_words(kind) for kind in arguments)}"
    words = {bool: "true or false", int: "whole number", float: "number", str: "text", NoneType: "null"}
    plural = "s" * (many and annotation in (int, float))
    return f"{words.get(annotation) or annotation.__name__}{plural}{_limits(metadata)}"


def _limits(metadata: Sequence[Any]) -> str:
    limits = {
        name: getattr(entry, name)
        for entry in metadata
        for name in ("ge", "gt", "le", "lt")
        if hasattr(entry, name)
    }
    words = {"ge": "from", "gt": "above", "le": "to", "lt": "to below"}
    if set(limits) == {"ge"}:
        return f" not below {limits['ge']:g}"
    return "".join(f" {word} {limits[name]:g}" for name, word in words.items() if name in limits)


# ---- tables ---------------------------------------------------------------------------------------------


def format_table(rows: Sequence[Sequence[str]], *, figures: bool = True, indent: str = "") -> str:
    """Rows as aligned columns two blanks apart: a label, then figures to the right or texts to the left.

    A row may be shorter than the others. Markdown is written by `scoring.tables`.
    """
    widths = [max(map(len, column)) for column in zip_longest(*rows, fillvalue="")]
    lines = []
    for label, *values in rows:
        cells = [label.ljust(widths[0])]
        for value, width in zip(values, widths[1:], strict=False):
            cells.append(value.rjust(width) if figures else value.ljust(width))
        lines.append(f"{indent}{'  '.join(cells)}".rstrip())
    return "\n".join(lines)


def format_columns(columns: Mapping[str, Sequence[tuple[str, str]]], *, indent: str = "") -> str:
    """A table of figures with a column each, such as one a split: every column has the same labels."""
    labels = [label for label, _ in next(iter(columns.values()))]
    figures = zip(*([figure for _, figure in column] for column in columns.values()), strict=True)
    rows = [[label, *row] for label, row in zip(labels, figures, strict=True)]
    return format_table([["", *columns], *rows], indent=indent)


def format_names(title: str, names: Sequence[str], file: str) -> list[str]:
    """The lines that name what a person has to look at, the rest of them in `file`; none where there is nothing."""
    if not names:
        return []
    rest = len(names) - _NAMES_SHOWN
    more = [f"  … and {rest:,} more in {file}"] if rest > 0 else []
    return [f"\n{title} ({len(names):,}):", *(f"  {name}" for name in names[:_NAMES_SHOWN]), *more]
