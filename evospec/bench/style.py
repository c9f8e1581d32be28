"""How plots look: size, colours that colour-blind readers tell apart, grid and legend."""

from __future__ import annotations

from pathlib import Path

from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure

# Okabe and Ito's palette, without its yellow, which is too pale on white; then three of Paul Tol's.
COLOURS = (
    "#0072B2",
    "#D55E00",
    "#009E73",
    "#CC79A7",
    "#56B4E9",
    "#E69F00",
    "#000000",
    "#882255",
    "#999933",
)
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*", "<")
NEUTRAL = "#7F7F7F"
DPI = 130


def new_figure(width: float, height: float) -> Figure:
    """A figure of its own, sizes in inches: no state is shared with other plots of the process."""
    return Figure(figsize=(width, height), layout="constrained", dpi=DPI)


def tidy(axes: Axes) -> None:
    """Light horizontal grid behind the data, no box."""
    axes.set_axisbelow(True)
    axes.grid(axis="y", color="#DDDDDD", linewidth=0.8)
    axes.spines[["top", "right"]].set_visible(False)


def legend_below(figure: Figure, columns: int) -> None:
    """One legend for all axes, outside them; each label once.

    Args:
        columns: at most; fewer where the labels are too long for the figure's width.
    """
    entries: dict[str, Artist] = {}
    for axes in figure.axes:
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            entries.setdefault(label, handle)
    for count in range(columns, 0, -1):
        legend = figure.legend(
            list(entries.values()), list(entries), loc="outside lower center", ncols=count, frameon=False
        )
        figure.draw_without_rendering()
        if count == 1 or legend.get_window_extent().width <= figure.bbox.width:
            return
        legend.remove()


def save(figure: Figure, path: Path) -> Path:
    figure.savefig(path)
    return path
