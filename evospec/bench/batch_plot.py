"""How arms fare as more requests are decoded together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter

from evospec.bench.results import PLAIN, Run
from evospec.bench.style import MARKERS, NEUTRAL, legend_below, new_figure, save, tidy
from evospec.bench.totals import least_over_domains, mean_over_domains


def batch_chart(runs: Sequence[Run], colours: Mapping[str, str], title: str, path: Path) -> Path:
    """Total tokens/s, and the slowest request beside plain decoding, over batch sizes."""
    figure = new_figure(9.0, 4.4)
    total, slowest = figure.subplots(1, 2)
    names = list(dict.fromkeys(run.name for run in runs))
    batches = list(dict.fromkeys(run.batch for run in runs))
    for number, name in enumerate(names):
        marker = MARKERS[number % len(MARKERS)]
        members = {
            batch: [run for run in runs if run.batch == batch and run.name == name and not run.failed]
            for batch in batches
        }
        members = {batch: found for batch, found in members.items() if found}
        speeds = {
            batch: mean_over_domains(own, lambda run: run.tokens_per_s) for batch, own in members.items()
        }
        _line(total, batches, speeds, name, colours[name], marker)
        if name != PLAIN:
            least = {
                batch: least_over_domains(own, lambda run: run.slowest_request)
                for batch, own in members.items()
            }
            _line(slowest, batches, least, name, colours[name], marker)
    total.set_ylim(bottom=0)
    total.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    total.set_ylabel("Tokens/s of all requests, mean over domains")
    slowest.set_ylabel("Slowest request (plain decoding = 1)")
    slowest.axhline(1.0, color=NEUTRAL, linestyle="--", linewidth=1.2, label="plain decoding")
    slowest.set_ylim(bottom=0)
    for axes in (total, slowest):
        axes.set_xticks(range(len(batches)), [str(batch) for batch in batches])
        axes.set_xlim(-0.3, len(batches) - 0.7)
        axes.set_xlabel("Requests decoded together")
        tidy(axes)
    figure.suptitle(title, fontsize=10)
    legend_below(figure, 4)
    return save(figure, path)


def _line(
    axes: Axes,
    batches: Sequence[int],
    values: Mapping[int, float | None],
    name: str,
    colour: str,
    marker: str,
) -> None:
    """Batch sizes are evenly spaced; those without a value are left out."""
    points = [(batches.index(batch), value) for batch, value in values.items() if value is not None]
    axes.plot(
        [place for place, _ in points],
        [value for _, value in points],
        color=colour,
        marker=marker,
        markersize=6,
        linewidth=1.6,
        label=name,
    )
