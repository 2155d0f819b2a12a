"""The jobs as a user calls them, in this process: no seconds go by until Python has started and imported again."""

import importlib
import sys
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path
from subprocess import CompletedProcess
from unittest.mock import patch

import pytest

from mnerqg import cli


def call(job: str, *arguments: str | Path) -> "CompletedProcess[str]":
    """`python jobs/JOB.py ARGUMENTS`: its exit code and what it printed."""
    main = importlib.import_module(f"jobs.{job}").main
    command = [f"jobs/{job}.py", *map(str, arguments)]
    out, err = StringIO(), StringIO()
    with (
        patch.object(sys, "argv", command),
        redirect_stdout(out),
        redirect_stderr(err),
        pytest.raises(SystemExit) as ended,
    ):
        cli.run(main)
    assert isinstance(ended.value.code, int)
    return CompletedProcess(command, ended.value.code, out.getvalue(), err.getvalue())
