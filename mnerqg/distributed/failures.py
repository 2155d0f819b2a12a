"""What went wrong, out of the errors that Ray wraps around it."""

import re

from ray.data.exceptions import SystemException
from ray.exceptions import ActorDiedError, RayTaskError, UserCodeException

from mnerqg.errors import DataError, one_line

_RAYS_ADVICE = ("Failed to apply UDF transform after", "To change retry attempts, backoff")

_ERROR = re.compile(r"[\w.]+(Error|Exception)(: |$)")
# In a traceback, between what a stage raised and Ray Data's own error for it.
_CAUSED = "The above exception was the direct cause"


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
    if (raised := _raised_by_stage(error)) is not None:
        return raised
    error = innermost(error)
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    # Behind the cause Ray says how often it tried, and how to make it try more often.
    lines = [line for line in lines if not line.startswith(_RAYS_ADVICE)] or lines
    if not lines:
        return type(error).__name__
    # An actor that died as it began has the traceback of what killed it in its message.
    is_named = isinstance(error, ActorDiedError) and _ERROR.match(lines[-1])
    return one_line(lines[-1]) if is_named else f"{type(error).__name__}: {one_line(lines[-1])}"


def _raised_by_stage(error: BaseException) -> str | None:
    """What a function of a stage has raised: of that only the traceback comes back, as a text, above Ray Data's own
    error, which says nothing of it."""
    if not (isinstance(error, RayTaskError) and isinstance(innermost(error), UserCodeException)):
        return None
    lines = str(error).partition(_CAUSED)[0].splitlines()
    return next((one_line(line) for line in reversed(lines) if _ERROR.match(line)), None)
