"""The errors a user can cause or meet. Each message names the thing, its value and the remedy, in one line.

`one_line` makes such a line of what other libraries raise.
"""


class MnerqgError(Exception):
    """Base of all errors that are reported as one line, without a traceback.

    `exit_code` is what a job ends with: 2 where the user has to change the command or the input,
    1 where a run that was right to start has failed.
    """

    exit_code = 2


class ConfigError(MnerqgError):
    """A configuration key or value that is not allowed."""


class DataError(MnerqgError):
    """A dataset or archive that cannot be read as what it should be."""


class StorageError(MnerqgError):
    """A URI that cannot be read or written as asked."""


class ModelError(MnerqgError):
    """A model directory or weight file that is incomplete or of another kind."""


class RunError(MnerqgError):
    """A run that started properly and failed on the way."""

    exit_code = 1


_CONTROL = dict.fromkeys([*range(9), *range(14, 32), 127], "?")


def one_line(error: BaseException | str, length: int = 300) -> str:
    """An exception's message, or its kind where it has none, as a line that every file and column can hold.

    Without line breaks and control characters and, beyond `length` characters, cut. What UTF-8 cannot hold (names of
    files that are in no encoding come as lone surrogates) becomes question marks.
    """
    line = " ".join(str(error).translate(_CONTROL).split())[:length] or type(error).__name__
    return line.encode("utf-8", "replace").decode()
