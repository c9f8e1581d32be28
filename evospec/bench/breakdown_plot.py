"""The parts of a cycle as stacked bars, beside the least time that the device allows."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes

from evospec.bench.results import Breakdown, Run
from evospec.bench.style import legend_below, new_figure, save

_PANELS_PER_ROW = 2
_BAR_INCHES = 0.34
_BOUND = "least time for its bytes"
# Drafter blue, target orange, each layers dark and head light; the rest in other hues.
_PARTS = (
    ("draft_layer_ms", "draft layer", "#0072B2"),
    ("draft_head_ms", "draft head", "#56B4E9"),
    ("target_layers_ms", "target layers", "#D55E00"),
    ("target_head_ms", "target head and decision", "#E69F00"),
    ("vocabulary_ms", "vocabulary", "#009E73"),
    ("host_ms", "host and rest", "#999999"),
)


def breakdown_chart(runs: Sequence[Run], title: str, path: Path) -> Path:
    """One panel per domain, one bar per arm that was profiled."""
    measured = [(run, run.breakdown) for run in runs if run.breakdown is not None]
    domains = list(dict.fromkeys(run.domain for run, _ in measured))
    arms = len({run.name for run, _ in measured})
    columns = min(len(domains), _PANELS_PER_ROW)
    lines = -(-len(domains) // columns)
    figure = new_figure(max(7.0, 4.6 * columns), lines * (1.0 + _BAR_INCHES * arms) + 1.1)
    panels = figure.subplots(lines, columns, sharex=True, squeeze=False).flatten().tolist()
    for axes, domain in zip(panels, domains, strict=False):
        _draw_panel(axes, [(run, parts) for run, parts in measured if run.domain == domain])
        axes.set_title(domain, fontsize=10)
        axes.set_xlabel("Milliseconds per cycle")
    for axes in panels[len(domains) :]:
        axes.set_visible(False)
    figure.suptitle(title, fontsize=10)
    legend_below(figure, 4)
    return save(figure, path)


def _draw_panel(axes: Axes, bars: Sequence[tuple[Run, Breakdown]]) -> None:
    places = range(len(bars))
    left = [0.0] * len(bars)
    for field, label, colour in _PARTS:
        values = [max(0.0, float(parts.model_dump()[field])) for _, parts in bars]  # below 0: noise
        axes.barh(places, values, 0.72, left=left, color=colour, label=label)
        left = [start + value for start, value in zip(left, values, strict=True)]
    for place, total in zip(places, left, strict=True):
        axes.annotate(
            f"{total:.3g}", (total, place), (4, 0), textcoords="offset points", va="center", fontsize=8
        )
    bounds = [(place, run.roofline_ms) for place, (run, _) in zip(places, bars, strict=True)]
    for place, bound in bounds:
        if bound is not None:
            axes.vlines(bound, place - 0.42, place + 0.42, color="black", linewidth=2.0, label=_BOUND)
    axes.set_yticks(places, [run.name for run, _ in bars])
    axes.invert_yaxis()
    axes.margins(x=0.12)
    axes.set_axisbelow(True)
    axes.grid(axis="x", color="#DDDDDD", linewidth=0.8)
    axes.spines[["top", "right"]].set_visible(False)
