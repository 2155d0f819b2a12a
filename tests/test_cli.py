"""What people read of a job: types in words, aligned tables, errors as one line."""

import signal
from typing import Annotated, Any, Literal

import pytest
from pydantic import BaseModel, ConfigDict, Field

from mnerqg import cli
from mnerqg.config_types import (
    CountOrRange,
    Many,
    NonNegativeFloat,
    Pair,
    PositiveFloat,
    PositiveInt,
    Probability,
)
from mnerqg.errors import ConfigError


@pytest.mark.parametrize(
    ("annotation", "words"),
    [
        (str, "text"),
        (bool, "true or false"),
        (int, "whole number"),
        (float | None, "null or number"),
        (PositiveInt | None, "null or whole number above 0"),
        (NonNegativeFloat, "number not below 0"),
        (Probability, "number from 0 to 1"),
        (Annotated[float, Field(ge=0, lt=1)], "number from 0 to below 1"),
        (Annotated[int, Field(gt=2, le=9)], "whole number above 2 to 9"),
        (Literal["fp32", "bf16"], "one of: fp32, bf16"),
        (Many[str], "list of text"),
        (Many[Literal["file", "s3"]], "list of file, s3"),
        (Many[Pair[PositiveFloat]], "list of lists of 2 numbers above 0"),
        (CountOrRange, "whole number above 0 or list of 2 whole numbers above 0"),
        (dict[str, int], "mapping of text to whole number"),
    ],
)
def test_types_in_words(annotation: Any, words: str) -> None:
    assert cli.type_in_words(annotation) == words


class Inner(BaseModel):
    """The inner section.

    More of it.
    """

    model_config = ConfigDict(use_attribute_docstrings=True)

    names: tuple[str, ...] = ()
    """Names."""
    pairs: tuple[tuple[int, int], ...] = ((1, 2), (3, 4), (5, 6))
    """Pairs
    over two lines."""
    words: dict[str, str] = Field(default={"a": "b"}, description="By letter.")


class Outer(BaseModel):
    model_config = ConfigDict(use_attribute_docstrings=True)

    inner: Inner = Inner()
    must: int
    """It must be there."""
    empty: str = ""
    """Nothing."""


def test_settings_by_section() -> None:
    text = cli.describe_settings(Outer, config=False)
    assert "the YAML of --config" not in text
    assert "in the YAML of --config" in cli.describe_settings(Outer)
    assert text[text.index("  --must") :].splitlines() == [
        "  --must  (whole number; required)",
        "      It must be there.",
        "  --empty  (text; default: '')",
        "      Nothing.",
        "",
        "inner: The inner section.",
        "  --inner.names  (list of text; default: [])",
        "      Names.",
        "  --inner.pairs  (list of lists of 2 whole numbers; default: [[1, 2], [3, 4], …])",
        "      Pairs over two lines.",
        "  --inner.words  (mapping of text to text; default: {a: b})",
        "      By letter.",
    ]


def test_an_option_is_not_abbreviated() -> None:
    """`--model.width` must not be taken for `--model`, nor `--act` for `--actors`."""
    parser = cli.job_parser("jobs/x.py", "X.", Outer)
    parser.add_argument("--inner-output")
    assert parser.parse_known_args(["--inner", "1"])[1] == ["--inner", "1"]


def test_tables_of_figures_and_of_texts() -> None:
    rows = [["", "train", "valid"], ["posts", "1,234", "5"], ["  with a picture", "-"]]
    assert cli.format_table(rows).splitlines() == [
        "                  train  valid",
        "posts             1,234      5",
        "  with a picture      -",
    ]
    assert cli.format_table(
        [["a", "one"], ["long", "two words"]], figures=False, indent="  "
    ).splitlines() == [
        "  a     one",
        "  long  two words",
    ]


def test_a_table_with_a_column_a_split() -> None:
    columns = {"train": [("posts", "10"), ("boxes", "2")], "valid": [("posts", "3"), ("boxes", "1,234")]}
    assert cli.format_columns(columns, indent=" ").splitlines() == [
        "        train  valid",
        " posts     10      3",
        " boxes      2  1,234",
    ]


def test_ctrl_c_is_one_line_and_130(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A second one, on the way out, changes nothing."""

    def main(_: list[str]) -> None:
        signal.raise_signal(signal.SIGINT)

    # As in a terminal; a suite that runs in the background of a shell ignores the signal.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(SystemExit) as caught:
            cli.run(main, interrupted="all is safe: go on")
        signal.raise_signal(signal.SIGINT)
    finally:
        signal.signal(signal.SIGINT, before)
    assert (caught.value.code, capsys.readouterr().err) == (130, "\ninterrupted; all is safe: go on\n")


def test_an_error_is_one_line_and_its_exit_code(capsys: pytest.CaptureFixture[str]) -> None:
    def main(_: list[str]) -> None:
        raise ConfigError("it is wrong")

    with pytest.raises(SystemExit) as caught:
        cli.run(main)
    assert (caught.value.code, capsys.readouterr().err) == (2, "error: it is wrong\n")
