"""``python -m examples.char_lm``; exit codes in common/errors.py."""

from __future__ import annotations

import sys

from ..common.program import run_command
from .cli import parse


def main(arguments: list[str] | None = None) -> int:
    return run_command(__package__, parse, arguments)


if __name__ == "__main__":
    sys.exit(main())
