"""What every job shares: errors become one line and an exit code."""

import sys
from collections.abc import Callable
from typing import NoReturn

from mnerqg.errors import MnerqgError


def run(main: Callable[[list[str]], None]) -> NoReturn:
    """Call `main` with the command line and exit: 0, or the error's code after one line on stderr."""
    try:
        main(sys.argv[1:])
    except MnerqgError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    sys.exit(0)
