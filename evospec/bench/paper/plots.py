"""Plots of a paper bench, drawn from its parts."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from matplotlib.axes import Axes

from evospec.bench.align_plots import write_align_plots
from evospec.bench.arms import TRANSFORMERS
from evospec.bench.batch_plot import batch_chart
from evospec.bench.breakdown_plot import breakdown_chart
from evospec.bench.paper.bars import learner_arms
from evospec.bench.paper.gains import AGREES, Gain
from evospec.bench.paper.lineup import Lineup
from evospec.bench.paper.names import BATCH, HEADLINE, LEARN, MEMORY, PEERS, SAMPLED, STREAM, TIMING, TREES
from evospec.bench.paper.view import PartView
from evospec.bench.results import FULL, PLAIN, Results, Run, Spread
from evospec.bench.stream_plots import write_stream_plots
from evospec.bench.style import COLOURS, MARKERS, NEUTRAL, legend_below, new_figure, save

_PANELS_PER_ROW = 2
_BAR_INCHES = 0.27
_KINDS = (
    ("plain decoding and peers", "#A3A3A3"),
    ("published ways", COLOURS[4]),
    ("EvoSpec and its parts", COLOURS[0]),
)

Value = tuple[float, Spread | None]


def write_paper_plots(
    parts: Mapping[str, Results], lineup: Lineup, gains: Sequence[Gain], folder: Path
) -> list[Path]:
    """Writes the plots that there is data for; returns their files."""
    title = _title(parts)
    titles = lineup.titles(run.name for part in parts.values() for run in part.runs)
    written: list[Path] = []
    for name in (HEADLINE, SAMPLED, TREES, PEERS):
        if name in parts:
            view = PartView(parts[name])
            chained = f"{lineup.reference}@chain"
            against = chained if view.has(chained) else lineup.reference
            written.append(_ratios(view, against, titles, f"{title}: {name}", folder / f"{name}.png"))
    if HEADLINE in parts:
        view = PartView(parts[HEADLINE])
        written.append(_lengths(view, titles, title, folder / "lengths.png"))
        named = [
            run.model_copy(update={"label": titles.get(run.name, run.name)}) for run in view.results.runs
        ]
        if any(run.breakdown for run in named):
            written.append(breakdown_chart(named, title, folder / "cycle.png"))
    if gains:
        written.append(_gains(gains, titles, title, folder / "gains.png"))
    written += _batches(parts, titles, title, folder)
    written += _adapting(parts, folder)
    timed = [
        run.model_copy(update={"domain": name.removeprefix(TIMING)})
        for name, part in parts.items()
        if name.startswith(TIMING)
        for run in part.runs
    ]
    if any(run.breakdown for run in timed):
        written.append(breakdown_chart(timed, "Timing only: random weights", folder / "timing.png"))
    return written


def _ratios(view: PartView, against: str, titles: Mapping[str, str], title: str, path: Path) -> Path:
    """tokens/s by another arm's, one panel per domain."""

    def value(arm: str, domain: str) -> Value | None:
        ratio = view.ratio(arm, against, [domain])
        return None if ratio is None else (ratio.value, (ratio.low, ratio.high))

    label = f"Tokens/s ({titles.get(against, against)} = 1)"
    return _panels(view, value, titles, (label, 1.0), title, path)


def _lengths(view: PartView, titles: Mapping[str, str], title: str, path: Path) -> Path:
    """Tokens per cycle by those of the full vocabulary."""

    def value(arm: str, domain: str) -> Value | None:
        own, full = (view.mean(one, [domain], lambda run: run.tokens_per_cycle) for one in (arm, FULL))
        return None if own is None or not full or arm == PLAIN else (own / full, None)

    return _panels(view, value, titles, ("Tokens per cycle (full vocabulary = 1)", 1.0), title, path)


def _panels(
    view: PartView,
    value: Callable[[str, str], Value | None],
    titles: Mapping[str, str],
    axis: tuple[str, float],
    title: str,
    path: Path,
) -> Path:
    """Args: axis: what bars show, and where the line is that they are held against."""
    label, baseline = axis
    domains = view.domains
    arms = [arm for arm in view.arms if any(value(arm, domain) for domain in domains)]
    columns = min(len(domains), _PANELS_PER_ROW)
    lines = -(-len(domains) // columns)
    figure = new_figure(max(7.0, 5.2 * columns), lines * (1.0 + _BAR_INCHES * len(arms)) + 0.9)
    panels = figure.subplots(lines, columns, sharex=True, sharey=True, squeeze=False).flatten().tolist()
    for axes, domain in zip(panels, domains, strict=False):
        for kind, colour in _KINDS:
            shown = [(place, value(arm, domain)) for place, arm in enumerate(arms) if _kind(arm) == kind]
            _draw(axes, [(place, found) for place, found in shown if found is not None], colour, kind)
        axes.axvline(baseline, color=NEUTRAL, linestyle="--", linewidth=1.2)
        axes.set_yticks(range(len(arms)), [titles.get(arm, arm) for arm in arms], fontsize=8)
        axes.set_title(domain, fontsize=10)
        axes.set_xlabel(label)
        axes.margins(x=0.1)
        axes.set_axisbelow(True)
        axes.grid(axis="x", color="#DDDDDD", linewidth=0.8)
        axes.spines[["top", "right"]].set_visible(False)
    panels[0].invert_yaxis()
    for axes in panels[len(domains) :]:
        axes.set_visible(False)
    figure.suptitle(title, fontsize=10)
    legend_below(figure, 3)
    return save(figure, path)


def _draw(axes: Axes, bars: Sequence[tuple[int, Value]], colour: str, label: str) -> None:
    if not bars:
        return
    axes.barh(
        [place for place, _ in bars], [value for _, (value, _) in bars], 0.75, color=colour, label=label
    )
    for place, (value, spread) in bars:
        end = value
        if spread is not None:
            axes.hlines(place, *spread, color="black", linewidth=1.1)
            end = max(value, spread[1])
        axes.annotate(
            f"{value:.2f}", (end, place), (4, 0), textcoords="offset points", va="center", fontsize=8
        )


def _kind(arm: str) -> str:
    if arm == PLAIN or arm.startswith(TRANSFORMERS):
        return _KINDS[0][0]
    return _KINDS[2][0] if arm.startswith("evospec") or arm.endswith("+aligned") else _KINDS[1][0]


def _gains(gains: Sequence[Gain], titles: Mapping[str, str], title: str, path: Path) -> Path:
    """Prediction over measurement, with the band in which they agree."""
    figure = new_figure(7.0, 6.2)
    axes = figure.subplots()
    for number, gain in enumerate(gains):
        axes.plot(
            gain.measured,
            gain.predicted,
            linestyle="none",
            marker=MARKERS[number % len(MARKERS)],
            markersize=8,
            color=COLOURS[(number + number // len(MARKERS)) % len(COLOURS)],
            label=titles.get(gain.arm, gain.arm),
        )
    values = [value for gain in gains for value in (gain.measured, gain.predicted)]
    ends = (0.96 * min(values), 1.04 * max(values))
    axes.plot(ends, ends, color=NEUTRAL, linestyle="--", linewidth=1.2)
    low, high = ([end * (1 + sign * AGREES) for end in ends] for sign in (-1, 1))
    axes.fill_between(ends, low, high, color="#EEEEEE", label="within 5 %")
    axes.set_xlabel("Measured decode speed (full vocabulary = 1)")
    axes.set_ylabel("Predicted by SlimSpec's model")
    axes.grid(color="#DDDDDD", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    figure.suptitle(title, fontsize=10)
    legend_below(figure, 3)
    return save(figure, path)


def _batches(parts: Mapping[str, Results], titles: Mapping[str, str], title: str, folder: Path) -> list[Path]:
    """Total tokens/s over batch sizes, of arms that larger batches have."""
    larger = [part for name, part in parts.items() if name.startswith(BATCH)]
    if not larger:
        return []
    arms = {run.name for part in larger for run in part.runs}
    alone = parts[HEADLINE].runs if HEADLINE in parts else ()
    runs: list[Run] = [run for run in alone if run.name in arms]
    runs += [run for part in larger for run in part.runs]
    named = [run.model_copy(update={"label": titles.get(run.name, run.name)}) for run in runs]
    names = list(dict.fromkeys(run.name for run in named))
    colours = {name: COLOURS[number % len(COLOURS)] for number, name in enumerate(names)}
    return [batch_chart(named, colours, title, folder / "batches.png")]


def _adapting(parts: Mapping[str, Results], folder: Path) -> list[Path]:
    """Of streams, and what updates take; arms by the short names of what they learn."""
    written: list[Path] = []
    if STREAM in parts and parts[STREAM].stream is not None:
        stream = parts[STREAM].stream
        if stream is not None:
            written += write_stream_plots(parts[STREAM], stream, folder)
    for name in (LEARN, MEMORY):
        if name in parts:
            written += write_align_plots(_short(parts[name], keep_costs=name == MEMORY), folder)
    return written


def _short(part: Results, *, keep_costs: bool) -> Results:
    names = {arm: name for name, arm in learner_arms(part).items()}
    updates = part.updates if keep_costs else ()
    costs = tuple(one.model_copy(update={"arm": names.get(one.arm, one.arm)}) for one in updates)
    learned = part.alignment
    if learned is not None:
        chunks = tuple(one.model_copy(update={"arm": names.get(one.arm, one.arm)}) for one in learned.chunks)
        learned = learned.model_copy(update={"chunks": chunks})
    return part.model_copy(update={"updates": costs, "alignment": learned})


def _title(parts: Mapping[str, Results]) -> str:
    part = parts.get(HEADLINE) or next(iter(parts.values()))
    device = part.machine.gpu or part.machine.cpu
    paper = part.settings.get("paper")
    target = paper.get("target") if isinstance(paper, dict) else ""
    return f"{target}, {part.settings['dtype']}, {device}"
