"""``main`` of a program with commands."""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Callable

from .errors import run_program
from .launch import quiet_unless_main


def run_command(
    package: str | None,
    parse: Callable[[list[str] | None], argparse.Namespace],
    arguments: list[str] | None,
) -> int:
    """Parses ``arguments`` and runs the module of ``package``.commands that the command names.

    Returns the exit code, of those in errors.py.
    """

    def run() -> int:
        options = parse(arguments)
        for stream in (sys.stdout, sys.stderr):
            # A terminal that cannot show a character shows "?", rather than ending the run.
            if hasattr(stream, "reconfigure"):
                stream.reconfigure(errors="replace")
        command = importlib.import_module(f".commands.{options.command}", package)
        with quiet_unless_main():
            return command.run(options)

    return run_program(run)
