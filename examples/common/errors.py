"""Mistakes of the user: one clear line on stderr and exit code 2."""

from __future__ import annotations

import sys
from collections.abc import Callable

from .launch import rank


class UserError(Exception):
    """Something the user can put right: a missing file, a wrong option. The message is one line."""


class TrainingError(Exception):
    """Training cannot go on: a NaN, a loss that exploded. The message is one line of advice."""


def run_program(program: Callable[[], int]) -> int:
    """Runs ``program`` and turns the errors above into one line on stderr, from one process.

    Returns the exit code: that of ``program``, 2 for a UserError, 1 for a TrainingError,
    130 when interrupted before the program took over Ctrl-C.
    """
    try:
        return program()
    except UserError as error:
        _say(f"error: {error}")
        return 2
    except TrainingError as error:
        _say(f"stopped: {error}")
        return 1
    except KeyboardInterrupt:
        _say("interrupted")
        return 130


def _say(line: str) -> None:
    if rank() == 0:
        print(line, file=sys.stderr)
