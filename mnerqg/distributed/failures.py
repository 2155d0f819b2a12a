"""What went wrong, out of the errors that Ray wraps around it."""

import logging

from ray.data.exceptions import SystemException

from mnerqg.errors import DataError, one_line

_LOGGERS = ("ray.data._internal.execution.streaming_executor_state", "ray.data.exceptions")
_RAYS_ADVICE = ("Failed to apply UDF transform after", "To change retry attempts, backoff")


def innermost(error: BaseException) -> BaseException:
    """The innermost cause: Ray wraps the stages' errors, traceback and all."""
    while (cause := getattr(error, "cause", None) or error.__cause__) is not None:
        if isinstance(cause, SystemException):
            break  # Ray Data's mark on errors outside of stages, which says nothing
        error = cause
    return error


def data_error(error: BaseException) -> DataError | None:
    """The error in the user's data that is the innermost cause, if it is one, as it was raised."""
    found = innermost(error)
    return DataError(str(found).partition("\n")[0]) if isinstance(found, DataError) else None


def first_cause(error: BaseException) -> str:
    """The innermost cause in one line."""
    error = innermost(error)
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    # Behind the cause Ray says how often it tried, and how to make it try more often.
    lines = [line for line in lines if not line.startswith(_RAYS_ADVICE)] or lines
    return f"{type(error).__name__}: {one_line(lines[-1])}" if lines else type(error).__name__


def keep_tracebacks_in_the_log() -> None:
    """Let Ray Data write a failure's hundred lines of traceback to its log file, and not to the terminal.

    There stands the one line that says what happened; where the log lies Ray says when it begins.
    """
    for name in _LOGGERS:
        logging.getLogger(name).addFilter(_hide)


def _hide(record: logging.LogRecord) -> bool:
    record.hide = True  # what Ray's own filter of the terminal looks at
    return True
