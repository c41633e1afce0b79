"""What the benchmark scripts share on the command line and on the screen."""

from __future__ import annotations

import argparse
import importlib.util
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NoReturn

import torch

from benchmarks.common import csv_files, csv_rows
from benchmarks.common.shapes import Shape, parse_shape
from benchmarks.common.timing import PairStats


class LineParser(argparse.ArgumentParser):
    """An argument parser whose errors are one line, without the usage in front."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {message} (--help lists the options)\n")


def shape_argument(text: str) -> Shape:
    try:
        return parse_shape(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def positive_float(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"expected a positive number, got {text!r}")
    return value


def positive_int(text: str) -> int:
    if not text.isdecimal() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"expected a positive integer, got {text!r}")
    return int(text)


def names_argument(what: str, known: Iterable[str]):
    """An argument type: distinct names out of `known`, separated by commas."""

    def parse(text: str) -> list[str]:
        names = text.split(",")
        for name in names:
            if name not in known:
                raise argparse.ArgumentTypeError(
                    f"unknown {what} {name!r}; known: {', '.join(known)}"
                )
        if len(set(names)) != len(names):
            raise argparse.ArgumentTypeError(f"a {what} is named twice in {text!r}")
        return names

    return parse


def add_run_options(parser: argparse.ArgumentParser, *, seconds: float | None = 3.0) -> None:
    """--threads, --seconds, --seed and --csv: how to measure, and where to keep it.

    seconds: the default of --seconds; None leaves that option out.
    """
    parser.add_argument(
        "--threads",
        type=positive_int,
        default=torch.get_num_threads(),
        help="CPU threads for every contender (default: torch's own choice, %(default)s)",
    )
    if seconds is not None:
        parser.add_argument(
            "--seconds",
            type=positive_float,
            default=seconds,
            help="time for the pairs of one row, after checks and warm-up (default: %(default)s)",
        )
    parser.add_argument(
        "--seed", type=int, default=0, help="of weights, inputs and order (default: %(default)s)"
    )
    parser.add_argument("--csv", type=Path, metavar="FILE", help="append the rows to this file")


def add_choices(
    parser: argparse.ArgumentParser, option: str, what: str, known: Sequence[str], default: str
) -> None:
    """An option that takes distinct names out of `known`, separated by commas."""
    parser.add_argument(
        option,
        type=names_argument(what, known),
        default=default,
        help=f"out of {','.join(known)} (default: %(default)s)",
    )


def print_conditions(conditions: Mapping[str, str]) -> None:
    print(", ".join(f"{name} {value}" for name, value in conditions.items()))


def check_csv(
    parser: argparse.ArgumentParser, path: Path | None, fields: Sequence[str] = csv_rows.FIELDS
) -> None:
    """End the program with one line, before anything is measured, if `path` cannot take rows."""
    if path is None:
        return
    if not path.resolve().parent.is_dir():
        parser.error(f"argument --csv: no such directory: {path.resolve().parent}")
    try:
        csv_files.check_header(path, fields)
    except (OSError, ValueError) as error:
        parser.error(f"argument --csv: {error}")


def check_plot(parser: argparse.ArgumentParser, path: Path | None) -> None:
    """End the program with one line, before anything is measured, if `path` cannot be drawn."""
    if path is None:
        return
    if not path.resolve().parent.is_dir():
        parser.error(f"argument --plot: no such directory: {path.resolve().parent}")
    if importlib.util.find_spec("matplotlib") is None:
        parser.error("argument --plot: needs matplotlib (pip install matplotlib)")


class Table:
    """Rows of text printed one by one under a header, columns aligned: text left, numbers right."""

    def __init__(self, columns: Sequence[tuple[str, int]]) -> None:
        """columns: (title, width); a negative width aligns left."""
        self._widths = [width for _, width in columns]
        print(self._line([title for title, _ in columns]))

    def _line(self, cells: Sequence[str]) -> str:
        return "  ".join(
            cell.ljust(-width) if width < 0 else cell.rjust(width)
            for cell, width in zip(cells, self._widths, strict=False)
        ).rstrip()

    def row(self, cells: Sequence[str]) -> None:
        print(self._line(cells), flush=True)


def dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def number(value: float | None, digits: int = 2) -> str:
    """`value` with `digits` decimals, "n/a" for None."""
    return "n/a" if value is None else f"{value:.{digits}f}"


def milliseconds(value: float) -> str:
    """Three significant digits or more from a microsecond up."""
    decimals = 5 if value < 0.1 else 3 if value < 10 else 2 if value < 100 else 1
    return f"{value:.{decimals}f}"


def ratio_cells(stats: PairStats) -> list[str]:
    """The cells base ms, ms, ratio, p10, p90, IQR."""
    return [
        milliseconds(stats.baseline_ms),
        milliseconds(stats.ms),
        number(stats.ratio),
        number(stats.ratio_p10),
        number(stats.ratio_p90),
        number(stats.ratio_p75 - stats.ratio_p25),
    ]


def csv_row(
    environment: Mapping[str, str],
    *,
    cell: str,
    mode: str,
    provider: str,
    baseline: str,
    shape: Shape,
    dtype: torch.dtype,
    stats: PairStats,
    gflops: float | None,
    peak_percent: float | None,
) -> dict[str, object]:
    """One result with its conditions, as csv_rows.append_rows takes it."""
    return {
        **dict.fromkeys(csv_rows.FIELDS),
        **environment,
        "cell": cell,
        "mode": mode,
        "provider": provider,
        "baseline": baseline,
        **shape._asdict(),
        "dtype": dtype_name(dtype),
        "pairs": stats.pairs,
        "ms": f"{stats.ms:.6g}",
        "ms_p10": f"{stats.ms_p10:.6g}",
        "ms_p90": f"{stats.ms_p90:.6g}",
        "baseline_ms": f"{stats.baseline_ms:.6g}",
        "ratio": f"{stats.ratio:.6g}",
        "ratio_p10": f"{stats.ratio_p10:.6g}",
        "ratio_p90": f"{stats.ratio_p90:.6g}",
        "gflops": None if gflops is None else f"{gflops:.6g}",
        "peak_percent": None if peak_percent is None else f"{peak_percent:.4g}",
    }
