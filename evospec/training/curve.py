"""The loss curve of a training run, as a PNG file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter

from evospec.bench.style import COLOURS, MARKERS, NEUTRAL, legend_below, new_figure, save, tidy
from evospec.training.history import HistoryLine

FILE = "curve.png"
_POINTS = 100  # per line; more only shows noise


def write_curve(lines: Sequence[HistoryLine], title: str, path: Path) -> Path:
    """Loss on the left, accuracy of each draft step on the right, both over tokens trained on.

    Held-out acceptance lengths, where they were measured, are written at their place in the right panel.
    """
    figure = new_figure(10.0, 4.4)
    left, right = figure.subplots(1, 2)
    thinned = _thin(lines)
    tokens = [line.tokens for line in thinned]
    left.plot(tokens, [line.loss for line in thinned], color=COLOURS[0], linewidth=1.6)
    left.set_ylabel("Loss (weighted KL divergence, nats)")
    left.set_ylim(bottom=0)
    for step in range(len(thinned[0].accuracy)):
        right.plot(
            tokens,
            [line.accuracy[step] for line in thinned],
            color=COLOURS[step % len(COLOURS)],
            linestyle="-" if step < len(COLOURS) else "--",
            marker=MARKERS[step % len(MARKERS)],
            markevery=max(len(thinned) // 8, 1),
            markersize=4,
            linewidth=1.4,
            label=f"step {step + 1}",
        )
    right.set_ylabel("Accuracy on training text")
    right.set_ylim(0, 1)
    _mark_measurements(right, lines)
    for axes in (left, right):
        axes.set_xlabel("Tokens trained on")
        axes.set_xlim(0, max(tokens) * 1.04)
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: short_count(value)))
        tidy(axes)
    figure.suptitle(title, fontsize=10)
    legend_below(figure, min(len(thinned[0].accuracy), 6))
    return save(figure, path)


def short_count(value: float) -> str:
    """1234567 as 1.2M."""
    for size, unit in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:.3g}{unit}"
    return f"{value:.0f}"


def _mark_measurements(axes: Axes, lines: Sequence[HistoryLine]) -> None:
    for line in lines:
        if line.held_out is None:
            continue
        axes.axvline(line.tokens, color=NEUTRAL, linestyle=":", linewidth=1.0)
        axes.annotate(
            f"held out τ {line.held_out:.2f}",
            (line.tokens, 0.98),
            xytext=(-3, 0),
            textcoords="offset points",
            rotation=90,
            ha="right",
            va="top",
            fontsize=8,
            color="#444444",
        )


def _thin(lines: Sequence[HistoryLine]) -> list[HistoryLine]:
    """At most about 100 lines, each the mean of its neighbours."""
    size = max(-(-len(lines) // _POINTS), 1)
    groups = [lines[first : first + size] for first in range(0, len(lines), size)]
    return [
        group[-1].model_copy(
            update={
                "loss": sum(line.loss for line in group) / len(group),
                "accuracy": tuple(
                    sum(values) / len(group)
                    for values in zip(*(line.accuracy for line in group), strict=True)
                ),
            }
        )
        for group in groups
    ]
