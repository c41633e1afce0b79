"""``python -m examples.char_lm``; exit codes in common/errors.py."""

from __future__ import annotations

import importlib
import sys

from ..common.errors import run_program
from ..common.launch import quiet_unless_main


def main(arguments: list[str] | None = None) -> int:
    return run_program(lambda: _run(arguments))


def _run(arguments: list[str] | None) -> int:
    from .cli import parse

    options = parse(arguments)
    for stream in (sys.stdout, sys.stderr):
        # A terminal that cannot show a character shows "?", rather than ending the run.
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")
    command = importlib.import_module(f".commands.{options.command}", __package__)
    with quiet_unless_main():
        return command.run(options)


if __name__ == "__main__":
    sys.exit(main())
