"""The loss curve every example draws."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from .files import atomic_write


def save_loss_plot(
    path: Path,
    curves: Mapping[str, tuple[Sequence[float], Sequence[float]]],
    levels: Mapping[str, float],
    *,
    title: str,
    xlabel: str,
    ylabel: str,
    scale: tuple[str, float] | None = None,
) -> None:
    """Draws ``curves`` (name -> x, y) with ``levels`` (name -> y) as dashed lines, as a PNG.

    ``scale`` (label, factor) adds a right-hand axis that shows y times the factor.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4.5), dpi=120, layout="constrained")
    axes = figure.add_subplot()
    for number, (name, (x, y)) in enumerate(curves.items()):
        dense = len(x) > 60
        axes.plot(x, y, color=f"C{number}", marker="" if dense else "o", markersize=3, label=name)
    for number, (name, level) in enumerate(levels.items()):
        color = f"C{len(curves) + number}"
        axes.axhline(level, color=color, linestyle="--", linewidth=1, label=f"{name} {level:.3f}")
    axes.set(title=title, xlabel=xlabel, ylabel=ylabel)
    axes.margins(x=0.01)
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    if scale is not None:
        label, factor = scale
        right = axes.secondary_yaxis(
            "right", functions=(lambda y: y * factor, lambda y: y / factor)
        )
        right.set_ylabel(label)
    with atomic_write(path) as file:
        FigureCanvasAgg(figure).print_png(file)
