"""The errors a user can cause or meet. Each message names the thing, its value and the remedy, in one line."""


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
