"""Draw the ratios in a CSV file of results.

    python benchmarks/plot.py rows.csv ratios.png

Needs matplotlib.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[1]))

from benchmarks.common import cli
from benchmarks.common.machine import AUTO
from benchmarks.common.rows import read

SERIES = (
    *("provider", "baseline", "dtype", "threads", "capability", "device", "tf32"),
    "wanted_kernel",
)
SHAPE = ("T", "N", "I", "H")
TICKS = (0.1, 0.2, 0.3, 0.5, 0.7, 1, 1.5, 2, 3, 4, 6, 8, 12, 16, 24, 32, 64)


def latest(rows: Sequence[Mapping[str, object]]) -> list[dict[str, str]]:
    """The last row of each cell, mode, shape and series, values as text, in order of first sight.

    A series is what is drawn in one colour: a provider with its baseline, dtype, threads, machine.
    """
    found = {}
    for row in rows:
        text = {name: "" if value is None else str(value) for name, value in row.items()}
        found[tuple(text[name] for name in ("cell", "mode", *SERIES, *SHAPE))] = text
    return list(found.values())


def series_label(row: Mapping[str, str], rows: Sequence[Mapping[str, str]]) -> str:
    """The provider of `row`, with whatever else tells it from other series in `rows`.

    A kernel that was asked for is always told: such rows are not what the library does by itself.
    """
    units = {"threads": "threads {}", "baseline": "against {}", "tf32": "TF32 {}"}
    units["wanted_kernel"] = "kernel {}"
    told = [name for name in SERIES[1:] if len({other[name] for other in rows}) > 1]
    if row["wanted_kernel"] != AUTO and "wanted_kernel" not in told:
        told.append("wanted_kernel")
    told = [name for name in told if row[name] not in ("", "none")]
    return ", ".join([row["provider"], *(units.get(name, "{}").format(row[name]) for name in told)])


def shape_label(row: Mapping[str, str]) -> str:
    return " · ".join(row[name] for name in SHAPE)


def draw(rows: Sequence[Mapping[str, object]], path: Path) -> None:
    """Write a picture of the ratios in `rows` (of rows.FIELDS; not empty) to `path`.

    A panel for each cell and mode; in it a line for each shape, with a dot at the median ratio and
    a whisker from the 10th to the 90th percentile of the pairs. Of rows that differ only in date
    and commit the last is drawn. The kind of picture is that of the path's suffix.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

    rows = latest(rows)
    cells = list(dict.fromkeys(row["cell"] for row in rows))
    modes = list(dict.fromkeys(row["mode"] for row in rows))
    shapes = list(dict.fromkeys(shape_label(row) for row in rows))
    labels = list(dict.fromkeys(series_label(row, rows) for row in rows))

    # Room for a number over each dot.
    line_inches = max(0.36, 0.18 * len(labels))
    spread = 0.5 if len(labels) < 3 else 0.8  # of the height of a shape, for its dots
    figure, panels = pyplot.subplots(
        len(cells),
        len(modes),
        figsize=(2 + 4.5 * len(modes), 1.6 + len(cells) * (0.8 + line_inches * len(shapes))),
        sharex=True,
        sharey=True,
        squeeze=False,
        layout="constrained",
    )
    for cell_panels, cell in zip(panels, cells, strict=True):
        for panel, mode in zip(cell_panels, modes, strict=True):
            for index, label in enumerate(labels):
                own = [
                    row
                    for row in rows
                    if (row["cell"], row["mode"]) == (cell, mode)
                    and series_label(row, rows) == label
                ]
                shift = spread * ((index + 0.5) / len(labels) - 0.5)
                median = [float(row["ratio"]) for row in own]
                low = [float(row["ratio"]) - float(row["ratio_p10"]) for row in own]
                high = [float(row["ratio_p90"]) - float(row["ratio"]) for row in own]
                heights = [shapes.index(shape_label(row)) + shift for row in own]
                panel.errorbar(
                    median,
                    heights,
                    xerr=[low, high],
                    fmt="o",
                    markersize=4.5,
                    capsize=2,
                    color=f"C{index}",
                    label=label,
                )
                for x, y in zip(median, heights, strict=True):
                    panel.annotate(
                        f"{x:.2f}",
                        (x, y),
                        textcoords="offset points",
                        xytext=(0, 4),
                        ha="center",
                        fontsize=7,
                        color=f"C{index}",
                    )
            panel.axvline(1, color="0.3", linewidth=1)
            panel.set_xscale("log", base=2)
            panel.xaxis.set_major_locator(FixedLocator(TICKS))
            panel.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}x"))
            panel.xaxis.set_minor_locator(NullLocator())
            panel.tick_params(axis="x", labelbottom=True)
            panel.grid(color="0.9")
            panel.set_axisbelow(True)
            panel.set_title(f"{cell}, {mode}", fontsize=10)
            panel.set_yticks(range(len(shapes)), shapes, fontsize=8)
            panel.set_ylim(len(shapes) - 0.4, -0.6)
        cell_panels[0].set_ylabel("T · N · I · H")

    handles = {}
    for panel in panels.flat:
        for handle, label in zip(*panel.get_legend_handles_labels(), strict=True):
            handles.setdefault(label, handle)
    figure.legend(
        handles.values(),
        handles.keys(),
        loc="outside upper center",
        ncols=3 if max(map(len, handles)) < 30 else 1,
        frameon=False,
        fontsize=9,
    )
    figure.supxlabel(
        f"time of baseline / time of provider\n{conditions(rows)}",
        fontsize=8,
    )
    figure.savefig(path, dpi=150)
    pyplot.close(figure)


def conditions(rows: Sequence[Mapping[str, str]]) -> str:
    """What all `rows` share, so that a picture does not travel without it."""
    shared = {
        name: row_values.pop()
        for name in (*SERIES[1:], "torch", "commit")
        if len(row_values := {row[name] for row in rows}) == 1
    }
    texts = {"threads": "threads {}", "baseline": "baseline {}", "torch": "torch {}"}
    texts["tf32"] = "TF32 {}"
    return ", ".join(
        texts.get(name, "{}").format(value)
        for name, value in shared.items()
        if value not in ("none", "unknown")
    )


def main(argv: Sequence[str] | None = None) -> int:
    parser = cli.Parser(prog="plot.py", description="Draw the ratios in a CSV of results.")
    parser.add_argument("csv", type=Path, help="rows written by bench_cells.py --csv")
    parser.add_argument("plot", type=Path, help="picture to write, .png or .svg")
    args = parser.parse_args(argv)
    parser.check_plot(args.plot)
    try:
        rows = read(args.csv)
    except (OSError, ValueError) as error:
        parser.error(str(error))
    if not rows:
        parser.error(f"no rows in {args.csv}")
    draw(rows, args.plot)
    return 0


if __name__ == "__main__":
    sys.exit(main())
