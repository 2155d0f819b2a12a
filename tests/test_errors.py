import os

import pytest

from mnerqg.errors import one_line


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (ValueError("a kernel\n  that\tdoes not"), "a kernel that does not"),
        (ValueError(" \n"), "ValueError"),
        ("no such file:\n\nx", "no such file: x"),
        (ValueError(os.fsdecode(b"no such file: caf\xe9.jpg")), "no such file: caf?.jpg"),
        ("a page\x00\x0f\x1b[31m of \x7f", "a page???[31m of ?"),
        (RuntimeError("x" * 1000), "x" * 300),
    ],
)
def test_an_exception_is_one_line_that_a_file_can_hold(error: Exception | str, line: str) -> None:
    assert one_line(error) == line
