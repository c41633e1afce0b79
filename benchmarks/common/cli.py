"""What the benchmark scripts share on the command line and on the screen."""

from __future__ import annotations

import argparse
import importlib.util
import itertools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import NoReturn

import torch

from benchmarks.common import rows
from benchmarks.common.devices import Cpu
from benchmarks.common.providers import PROVIDERS, Cell, why_missing
from benchmarks.common.shapes import MODES, parse_shape
from benchmarks.common.timing import PairStats

INTERRUPTED = 130


def argument_type(parse: Callable, expected: str) -> Callable:
    """An argument type: `parse` returns None, or raises ValueError, for what is not `expected`."""

    def checked(text: str) -> object:
        try:
            value = parse(text)
        except ValueError:
            value = None
        if value is None:
            raise argparse.ArgumentTypeError(f"expected {expected}, got {text!r}")
        return value

    return checked


def finite_above_0(text: str) -> float | None:
    return value if 0 < (value := float(text)) < math.inf else None


def integer_above_0(text: str) -> int | None:
    return int(text) if text.isdecimal() and int(text) > 0 else None


def shape(text: str) -> tuple[int, ...]:
    try:
        return parse_shape(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


positive_float = argument_type(finite_above_0, "a positive number")
positive_int = argument_type(integer_above_0, "a positive integer")


def names(what: str, known: Iterable[str]) -> Callable[[str], list[str]]:
    """An argument type: distinct names out of `known`, separated by commas."""

    def parse(text: str) -> list[str]:
        found = text.split(",")
        for name in found:
            if name not in known:
                raise argparse.ArgumentTypeError(
                    f"unknown {what} {name!r}; known: {', '.join(known)}"
                )
        if len(set(found)) != len(found):
            raise argparse.ArgumentTypeError(f"a {what} is named twice in {text!r}")
        return found

    return parse


# What options of these names have in common, whichever script they are of.
SHARED: dict[str, dict[str, object]] = {
    "--shape": {"type": shape, "metavar": "T,N,I,H"},
    "--mode": {"choices": MODES, "help": "default: infer, then train"},
    "--threads": {
        "type": positive_int,
        "default": torch.get_num_threads(),
        "help": "CPU threads for every contender, torch's own choice where it is not given",
    },
    "--seconds": {
        "type": positive_float,
        "default": 3.0,
        "help": "time for the pairs of one row, after checks and warm-up",
    },
    "--seed": {"type": int, "default": 0, "help": "of weights, inputs and order"},
    "--csv": {"type": Path, "metavar": "FILE", "help": "append the rows to this file"},
    "--budget": {"type": positive_float, "metavar": "SECONDS"},
    "--min-ratio": {"type": positive_float, "help": "exit code 1 where a ratio is below"},
}


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are one line, without the usage in front."""

    def error(self, message: str) -> NoReturn:
        self.fail(f"{message} (--help lists the options)")

    def fail(self, message: str) -> NoReturn:
        """End the program with exit code 2."""
        self.exit(2, f"{self.prog}: error: {message}\n")

    def add(self, *options: str, **more: object) -> None:
        """Add options, with what SHARED has for them; their help tells the default."""
        for option in options:
            found = {**SHARED.get(option, {}), **more}
            if found.get("default") is not None:
                found["help"] = f"{found.get('help', '')} (default: %(default)s)".lstrip()
            self.add_argument(option, **found)

    def add_names(self, option: str, what: str, known: Iterable[str], default: str) -> None:
        """An option that takes distinct names out of `known`, separated by commas."""
        self.add_argument(
            option,
            type=names(what, tuple(known)),
            default=default,
            help=f"out of {','.join(known)} (default: %(default)s)",
        )

    def check_file(self, option: str, path: Path | None) -> None:
        """End the program with one line, before anything is measured, if `path` has no folder."""
        if path is not None and not path.resolve().parent.is_dir():
            self.error(f"argument {option}: no such directory: {path.resolve().parent}")

    def check_csv(self, path: Path | None, fields: Sequence[str] = rows.FIELDS) -> None:
        """The same if `path` cannot take rows."""
        self.check_file("--csv", path)
        try:
            if path is not None:
                rows.check_header(path, fields)
        except (OSError, ValueError) as error:
            self.error(f"argument --csv: {error}")

    def check_plot(self, path: Path | None) -> None:
        """The same if `path` cannot be drawn."""
        self.check_file("--plot", path)
        if path is not None and importlib.util.find_spec("matplotlib") is None:
            self.error("argument --plot: needs matplotlib (pip install matplotlib)")

    def begin(
        self,
        args: argparse.Namespace,
        cells: Sequence[Cell],
        providers: Sequence[str] = ("fastlstm",),
        device: Cpu | None = None,
    ) -> dict[str, str]:
        """Check what a run of `providers` needs, set threads, and print and return its conditions.

        device: the CPU where None.
        """
        device = device or Cpu()
        for name, cell in itertools.product(providers, cells):
            reason = why_missing(PROVIDERS[name], cell, device.tensors)
            if reason is not None:
                self.error(f"argument --providers: {reason}" if "providers" in args else reason)
        self.check_csv(args.csv)
        torch.set_num_threads(args.threads)
        conditions = device.conditions()
        print_conditions(conditions)
        return conditions


def print_conditions(conditions: Mapping[str, str]) -> None:
    print(", ".join(f"{name} {value}" for name, value in conditions.items()))


class Table:
    """Rows of text printed one by one under a header, columns aligned: text left, numbers right."""

    def __init__(self, columns: Sequence[tuple[str, int]]) -> None:
        """columns: (title, width); a negative width aligns left."""
        self._widths = [width for _, width in columns]
        self.row([title for title, _ in columns])

    def row(self, cells: Sequence[str]) -> None:
        padded = (
            cell.ljust(-width) if width < 0 else cell.rjust(width)
            for cell, width in zip(cells, self._widths, strict=False)
        )
        print("  ".join(padded).rstrip(), flush=True)


def number(value: float | None, digits: int = 2) -> str:
    """`value` with `digits` decimals, "n/a" for None."""
    return "n/a" if value is None else f"{value:.{digits}f}"


def milliseconds(value: float) -> str:
    """Three significant digits or more from a microsecond up."""
    return number(value, 5 if value < 0.1 else 3 if value < 10 else 2 if value < 100 else 1)


RATIO_COLUMNS = (("base ms", 9), ("ms", 9), ("ratio", 6), ("p10", 6), ("p90", 6), ("IQR", 6))


def ratio_cells(stats: PairStats) -> list[str]:
    """The cells of RATIO_COLUMNS."""
    ratios = stats.ratio, stats.ratio_p10, stats.ratio_p90, stats.ratio_p75 - stats.ratio_p25
    return [*map(milliseconds, (stats.baseline_ms, stats.ms)), *map(number, ratios)]
