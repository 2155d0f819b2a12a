"""What went wrong, out of the errors that Ray wraps around it."""

from ray.data.exceptions import SystemException

from mnerqg.errors import one_line

_RAYS_ADVICE = ("Failed to apply UDF transform after", "To change retry attempts, backoff")


def innermost(error: BaseException) -> BaseException:
    """The innermost cause: Ray wraps the stages' errors, traceback and all."""
    while (cause := getattr(error, "cause", None) or error.__cause__) is not None:
        if isinstance(cause, SystemException):
            break  # Ray Data's mark on errors outside of stages, which says nothing
        error = cause
    return error


def first_cause(error: BaseException) -> str:
    """The innermost cause in one line."""
    error = innermost(error)
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    # Behind the cause Ray says how often it tried, and how to make it try more often.
    lines = [line for line in lines if not line.startswith(_RAYS_ADVICE)] or lines
    return f"{type(error).__name__}: {one_line(lines[-1])}" if lines else type(error).__name__
