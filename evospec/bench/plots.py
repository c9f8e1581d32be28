"""Plots of a decode bench, as PNG files: speed, tokens per cycle, acceptance, and the parts of a cycle."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from evospec.bench.arms import TRANSFORMERS
from evospec.bench.batch_plot import batch_chart
from evospec.bench.breakdown_plot import breakdown_chart
from evospec.bench.results import PLAIN, Results, Run, Spread
from evospec.bench.style import COLOURS, MARKERS, NEUTRAL, legend_below, new_figure, save, tidy

_GROUP_WIDTH = 0.86  # of the distance between two domains
_PANELS_PER_ROW = 4
_BAR_INCHES = 0.42  # room for a label of four figures
_MOST_INCHES = 11.0  # wider charts go on in a second line
# Peers are grey, so that they stand apart from our own arms.
_GREYS = ("#4D4D4D", "#7A7A7A", "#A3A3A3", "#C9C9C9")


@dataclass(frozen=True, slots=True)
class _Bars:
    """What a bar chart over domains and arms shows."""

    label: str
    value: Callable[[Run], float | None]
    spread: Callable[[Run], Spread | None]
    baseline: float


def write_plots(results: Results, folder: Path) -> list[Path]:
    """Writes the plots that the results have data for; returns their files."""
    colours = _colours(results.runs)
    sizes = results.batches
    if len(sizes) == 1:
        return _charts(results.runs, colours, _title(results, sizes), folder, "")
    written = [batch_chart(results.runs, colours, _title(results, sizes), folder / "batches.png")]
    for batch in sizes:
        own = [run for run in results.runs if run.batch == batch]
        written += _charts(own, colours, _title(results, [batch]), folder, f"-batch-{batch}")
    return written


def _charts(
    runs: Sequence[Run], colours: dict[str, str], title: str, folder: Path, suffix: str
) -> list[Path]:
    """Those of one batch size; `suffix` ends the files' names."""
    speed = _Bars(
        "Tokens/s (plain decoding = 1)",
        lambda run: run.speedup,
        lambda run: run.speedup_quartiles,
        baseline=1.0,
    )
    length = _Bars(
        "Tokens per cycle and request",
        lambda run: run.tokens_per_cycle,
        lambda run: None,
        baseline=1.0,
    )
    compared = [run for run in runs if run.policy != PLAIN] or list(runs)
    drafting = [run for run in compared if _drafts(run)]

    def file(name: str) -> Path:
        return folder / f"{name}{suffix}.png"

    written = [_bar_chart(compared, speed, colours, title, file("speed"))]
    if drafting:
        written.append(_bar_chart(drafting, length, colours, title, file("tokens_per_cycle")))
    if any(run.acceptance_by_position for run in runs):
        written.append(_positions(runs, colours, title, file("acceptance_by_position")))
    if any(run.breakdown for run in runs):
        written.append(breakdown_chart(runs, title, file("cycle")))
    return written


def _drafts(run: Run) -> bool:
    return run.policy not in (PLAIN, TRANSFORMERS, f"{TRANSFORMERS}:static")


def _title(results: Results, batches: Sequence[int]) -> str:
    first = results.runs[0]
    device = results.machine.gpu if results.settings["device"] == "cuda" else results.machine.cpu
    return f"{first.target}, {results.settings['dtype']}, batch {', '.join(map(str, batches))}, {device}"


def _colours(runs: Iterable[Run]) -> dict[str, str]:
    """Of each arm, by name."""
    peers = _distinct(run.name for run in runs if run.policy.startswith(TRANSFORMERS))
    own = [name for name in _distinct(run.name for run in runs) if name not in (PLAIN, *peers)]
    colours = {name: COLOURS[number % len(COLOURS)] for number, name in enumerate(own)}
    greys = {name: _GREYS[number % len(_GREYS)] for number, name in enumerate(peers)}
    return {PLAIN: NEUTRAL} | colours | greys


def _bar_chart(runs: Sequence[Run], bars: _Bars, colours: dict[str, str], title: str, path: Path) -> Path:
    domains, names = _distinct(run.domain for run in runs), _distinct(run.name for run in runs)
    group = _BAR_INCHES * len(names) / _GROUP_WIDTH
    lines = -(-len(domains) // max(1, int(_MOST_INCHES / group)))
    columns = -(-len(domains) // lines)
    figure = new_figure(max(7.0, 1.0 + group * columns), 3.1 * lines + 1.3)
    panels = figure.subplots(lines, 1, sharey=True, squeeze=False).flatten().tolist()
    for line, axes in enumerate(panels):
        shown = domains[line * columns : (line + 1) * columns]
        _draw_groups(axes, [run for run in runs if run.domain in shown], names, bars, colours)
        axes.set_xlim(-0.5, columns - 0.5)
    panels[0].set_ylim(0, panels[0].get_ylim()[1] * 1.08)
    figure.suptitle(title, fontsize=10)
    legend_below(figure, min(len(names) + 1, 4))
    return save(figure, path)


def _draw_groups(
    axes: Axes, runs: Sequence[Run], names: Sequence[str], bars: _Bars, colours: dict[str, str]
) -> None:
    """Bars of all arms, side by side in each domain."""
    domains = _distinct(run.domain for run in runs)
    width = _GROUP_WIDTH / len(names)
    for number, name in enumerate(names):
        offset = (number - (len(names) - 1) / 2) * width
        members = [run for run in runs if run.name == name]
        places = [domains.index(run.domain) + offset for run in members]
        if members:
            _draw_bars(axes, places, members, bars, colours[name], width)
    axes.axhline(bars.baseline, color=NEUTRAL, linestyle="--", linewidth=1.2, label="plain decoding")
    axes.set_xticks(range(len(domains)), domains)
    axes.set_ylabel(bars.label)
    tidy(axes)


def _draw_bars(
    axes: Axes, places: Sequence[float], runs: Sequence[Run], bars: _Bars, colour: str, width: float
) -> None:
    values = [0.0 if run.failed else bars.value(run) or 0.0 for run in runs]
    spreads = [None if run.failed else bars.spread(run) for run in runs]
    axes.bar(places, values, width * 0.92, color=colour, label=runs[0].name)
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


def _positions(runs: Sequence[Run], colours: dict[str, str], title: str, path: Path) -> Path:
    drawn = [run for run in runs if run.acceptance_by_position]
    domains, names = _distinct(run.domain for run in runs), _distinct(run.name for run in drawn)
    columns = min(len(domains), _PANELS_PER_ROW)
    lines = -(-len(domains) // columns)
    figure = new_figure(max(5.0, 2.9 * columns), 2.9 * lines + 0.9)
    panels = figure.subplots(lines, columns, sharex=True, sharey=True, squeeze=False).flatten().tolist()
    for axes, domain in zip(panels, domains, strict=False):
        for run in drawn:
            if run.domain == domain and not run.failed:
                _draw_line(axes, run, colours[run.name], MARKERS[names.index(run.name) % len(MARKERS)])
        axes.set_title(domain, fontsize=10)
        axes.set_ylim(-0.03, 1.03)  # marks at the ends stay whole
        axes.set_xlabel("Draft position")
        tidy(axes)
    for axes in panels[len(domains) :]:
        axes.set_visible(False)
    for axes in panels[::columns]:
        axes.set_ylabel("Accepted / attempted")
    figure.suptitle(title, fontsize=10)
    legend_below(figure, min(len(names), 4))
    return save(figure, path)


def _draw_line(axes: Axes, run: Run, colour: str, marker: str) -> None:
    rates = run.acceptance_by_position
    axes.plot(
        range(1, len(rates) + 1),
        rates,
        color=colour,
        marker=marker,
        markersize=5,
        linewidth=1.6,
        label=run.name,
    )
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))


def _distinct(names: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(names))
