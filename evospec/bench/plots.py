"""Plots of a decode bench: speed, acceptance length and acceptance by position, as PNG files."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from evospec.bench.results import PLAIN, Results, Run, Spread
from evospec.bench.style import COLOURS, MARKERS, NEUTRAL, legend_below, new_figure, save, tidy

_GROUP_WIDTH = 0.82  # of the distance between two domains
_PANELS_PER_ROW = 4


@dataclass(frozen=True, slots=True)
class _Bars:
    """What a bar chart over domains and policies shows."""

    label: str
    value: Callable[[Run], float | None]
    spread: Callable[[Run], Spread | None]
    baseline: float


def write_plots(results: Results, folder: Path) -> list[Path]:
    """Writes the plots that the results have data for; returns their files."""
    title = _title(results)
    speed = _Bars(
        "Tokens/s (plain decoding = 1)",
        lambda run: run.speedup,
        lambda run: run.speedup_quartiles,
        baseline=1.0,
    )
    length = _Bars(
        "Acceptance length τ (tokens per cycle)",
        lambda run: run.acceptance_length,
        lambda run: None,
        baseline=1.0,
    )
    written = [
        _bar_chart(results.runs, speed, title, folder / "speed.png"),
        _bar_chart(results.runs, length, title, folder / "acceptance_length.png"),
    ]
    if any(run.acceptance_by_position for run in results.runs):
        written.append(_positions(results.runs, title, folder / "acceptance_by_position.png"))
    return written


def _title(results: Results) -> str:
    first = results.runs[0]
    device = results.machine.gpu if results.settings["device"] == "cuda" else results.machine.cpu
    return f"{first.target}, {results.settings['dtype']}, batch {first.batch}, {device}"


def _bar_chart(runs: Sequence[Run], bars: _Bars, title: str, path: Path) -> Path:
    domains = _distinct(run.domain for run in runs)
    policies = [policy for policy in _distinct(run.policy for run in runs) if policy != PLAIN] or [PLAIN]
    width = _GROUP_WIDTH / len(policies)
    figure = new_figure(max(6.0, 1.2 + 0.62 * len(domains) * len(policies) + 0.3 * len(domains)), 4.2)
    axes = figure.subplots()
    for number, policy in enumerate(policies):
        offset = (number - (len(policies) - 1) / 2) * width
        own = {run.domain: run for run in runs if run.policy == policy}
        places = [place + offset for place, domain in enumerate(domains) if domain in own]
        _draw_bars(axes, places, [own[domain] for domain in domains if domain in own], bars, number, width)
    axes.axhline(bars.baseline, color=NEUTRAL, linestyle="--", linewidth=1.2, label="plain decoding")
    axes.set_xticks(range(len(domains)), domains)
    axes.set_ylabel(bars.label)
    axes.set_title(title, fontsize=10)
    axes.set_ylim(0, axes.get_ylim()[1] * 1.08)
    tidy(axes)
    legend_below(figure, min(len(policies) + 1, 5))
    return save(figure, path)


def _draw_bars(
    axes: Axes, places: Sequence[float], runs: Sequence[Run], bars: _Bars, number: int, width: float
) -> None:
    values = [0.0 if run.failed else bars.value(run) or 0.0 for run in runs]
    spreads = [None if run.failed else bars.spread(run) for run in runs]
    axes.bar(places, values, width * 0.92, color=COLOURS[number % len(COLOURS)], label=runs[0].policy)
    for place, value, spread, run in zip(places, values, spreads, runs, strict=True):
        top = value
        if spread is not None:
            top = max(value, spread[1])
            axes.vlines(place, *spread, color="black", linewidth=1.1)
        text = "failed" if run.failed else f"{value:.2f}"
        axes.annotate(
            text,
            (place, top),
            xytext=(0, 3),
            textcoords="offset points",
            ha="center",
            va="bottom",
            fontsize=8,
            rotation=90 if run.failed else 0,
            bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.5},  # over the line at 1
        )


def _positions(runs: Sequence[Run], title: str, path: Path) -> Path:
    domains = _distinct(run.domain for run in runs)
    policies = [policy for policy in _distinct(run.policy for run in runs) if policy != PLAIN]
    columns = min(len(domains), _PANELS_PER_ROW)
    lines = -(-len(domains) // columns)
    figure = new_figure(max(5.0, 2.9 * columns), 2.9 * lines + 0.9)
    panels = figure.subplots(lines, columns, sharex=True, sharey=True, squeeze=False).flatten().tolist()
    for axes, domain in zip(panels, domains, strict=False):
        for run in runs:
            if run.domain == domain and run.acceptance_by_position and not run.failed:
                _draw_line(axes, run, policies.index(run.policy))
        axes.set_title(domain, fontsize=10)
        axes.set_ylim(-0.03, 1.03)  # marks at the ends stay whole
        axes.set_xlabel("Draft position")
        tidy(axes)
    for axes in panels[len(domains) :]:
        axes.set_visible(False)
    for axes in panels[::columns]:
        axes.set_ylabel("Accepted / attempted")
    figure.suptitle(title, fontsize=10)
    legend_below(figure, min(len(policies), 5))
    return save(figure, path)


def _draw_line(axes: Axes, run: Run, number: int) -> None:
    rates = run.acceptance_by_position
    axes.plot(
        range(1, len(rates) + 1),
        rates,
        color=COLOURS[number % len(COLOURS)],
        marker=MARKERS[number % len(MARKERS)],
        markersize=5,
        linewidth=1.6,
        label=run.policy,
    )
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))


def _distinct(names: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(names))
