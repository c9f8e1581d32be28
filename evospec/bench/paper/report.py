"""report.md of a paper bench: the bars first, then what they rest on. It is made from files alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from evospec.bench.markdown import table
from evospec.bench.paper.adapting_tables import learned_table, recovery_table, updates_table
from evospec.bench.paper.bars import (
    MEMORY_SHARE,
    REPEATED,
    SpeedBar,
    exact,
    memory_share,
    speed_bars,
)
from evospec.bench.paper.measured import Paper
from evospec.bench.paper.names import BATCH, HEADLINE, LEARN, MEMORY, PEERS, SAMPLED, STREAM, TIMING, TREES
from evospec.bench.paper.notes import NOTES, TIMING_NOTE
from evospec.bench.paper.origin_table import origin_sections
from evospec.bench.paper.plots import write_paper_plots
from evospec.bench.paper.state import PaperFolder, PaperStateError
from evospec.bench.paper.tables import (
    arms_table,
    bars_table,
    cycles_table,
    domains_table,
    gain_reasons,
    gains_table,
)
from evospec.bench.paper.timing_table import timing_table
from evospec.bench.paper.view import PartView
from evospec.bench.report import FILE_NAME
from evospec.bench.results import Results

_FEW = "fr-spec:4096"


def write_paper(folder: Path, repeat: Path | None = None) -> Results:
    """Writes results.json, report.md and plots from the parts that are done.

    Raises:
        EvoSpecError: a folder has no finished part, or can't be written.
    """
    parts = _read(folder)
    paper = Paper.of(parts, None if repeat is None else _read(repeat))
    joined = _joined(parts)
    joined.write(folder)
    plots = write_paper_plots(parts, paper.lineup, paper.gains, folder)
    (folder / FILE_NAME).write_text(render_paper(paper, [plot.name for plot in plots]), encoding="utf-8")
    return joined


def render_paper(paper: Paper, plots: Sequence[str]) -> str:
    first = next(iter(paper.parts.values()))
    target = str(_setting(first, "target"))
    device = first.machine.gpu or first.machine.cpu
    sections = [f"# Paper bench: {target}, {first.settings['dtype']}, {device}\n", *_claim(paper)]
    sections += [f"![{Path(plot).stem.replace('_', ' ').replace('-', ' ')}]({plot})\n" for plot in plots]
    sections += [*_headline(paper), *_adapting(paper), *_conditions(paper), *_timing(paper), *_repeat(paper)]
    sections += ["## How to read this\n", NOTES, *origin_sections(paper)]
    return "\n".join(sections)


def _claim(paper: Paper) -> list[str]:
    bars = speed_bars(paper.parts, paper.lineup)
    failures = exact(paper.parts)
    share = memory_share(paper.parts)
    apart = max((abs(one.change) for one in paper.differences), default=None)
    checked = any(run.identical_to_plain for part in paper.parts.values() for run in part.runs)
    others = (
        (
            "outputs that are not the target's",
            "none",
            f"{len(failures)} arms" if checked else "-",
            not failures if checked else None,
        ),
        (
            "peak memory of adapting, by standard online adaptation's",
            f"{MEMORY_SHARE:.0%} at most",
            "-" if share is None else f"{share:.1%}",
            None if share is None else share <= MEMORY_SHARE,
        ),
        (
            "ratios of the same command twice",
            f"{REPEATED:.0%} apart at most",
            "-" if apart is None else f"{apart:.1%}",
            None if apart is None else apart <= REPEATED,
        ),
    )
    text = [
        "## The claim\n",
        f"*{paper.titles[paper.lineup.both]}* (`{paper.lineup.both}`) against the others:\n",
    ]
    text += [bars_table(bars, others)]
    text += [f"- **FAILED**: {failure}\n" for failure in failures]
    missed = [bar for bar in bars if bar.met is False]
    if missed:
        text += ["### What falls short, and why\n", "\n".join(_why(bar) for bar in missed) + "\n"]
    return text


def _why(bar: SpeedBar) -> str:
    cause, measured = bar.cause, bar.measured
    if cause is None or measured is None:
        return f"- {bar.text}: {bar.short:.1%} short; its parts were not measured."
    largest = sorted(cause.longer.items(), key=lambda entry: -abs(entry[1]))[:4]
    told = ", ".join(f"{label} {1000 * ms:+.0f}" for label, ms in largest)
    ceiling = cause.without_head
    line = (
        f"- **{bar.text}**: {measured.value:.3f} of {bar.needed:.2f}. Tokens per cycle make "
        f"{cause.length:.3f} of it, a cycle of {cause.own_ms:.3f} ms against {cause.base_ms:.3f} makes "
        f"{cause.cycle:.3f}, {cause.between:.3f} is kept between cycles, prompts make {cause.prompts:.3f}."
    )
    if told:
        line += f" Parts of a cycle, µs longer than the other's: {told}."
    if ceiling is not None:
        line += f" With a draft head that took no time it would be {ceiling:.3f}."
    return (
        f"{line} At these cycles the bar takes {cause.length_for(bar.needed):.3f} times its tokens per cycle."
    )


def _headline(paper: Paper) -> list[str]:
    view = paper.view(HEADLINE)
    if view is None:
        return []
    lineup, titles = paper.lineup, paper.titles
    text = [
        "## All arms: greedy chains, batch 1\n",
        f"Means over {', '.join(view.headline)}.\n",
        arms_table(view, lineup.reference, titles),
        f"tokens/s by `{lineup.reference}`'s on the same batches (quartiles), and τ:\n",
        domains_table(view, lineup.reference, titles),
    ]
    if paper.gains:
        text += ["### What the head's time says (SlimSpec's model)\n", gains_table(paper.gains, titles)]
        text += [gain_reasons(paper.gains, titles)]
    return [*text, "### Parts of a cycle\n", cycles_table(view, titles)]


def _adapting(paper: Paper) -> list[str]:
    text = []
    if LEARN in paper.parts:
        part = paper.parts[LEARN]
        text += ["## Learning from a stream\n", learned_table(part)]
        failed = () if part.alignment is None else part.alignment.failures
        text += [f"- **FAILED**: {one.arm} after {one.place} requests: {one.problem}\n" for one in failed]
    if MEMORY in paper.parts:
        text += ["## What updates take\n", updates_table(paper.parts[MEMORY])]
    if STREAM in paper.parts:
        text += ["## A stream whose topic switches\n", recovery_table(paper.parts[STREAM], paper.titles)]
        text += [arms_table(PartView(paper.parts[STREAM]), paper.lineup.reference, paper.titles)]
    return text


def _conditions(paper: Paper) -> list[str]:
    reference = paper.lineup.reference
    listed = [(f"Batch {size}", view, reference) for size, view in paper.beginning(BATCH).items()]
    for name, title in ((TREES, "Trees and the controller"), (SAMPLED, "Temperature 1"), (PEERS, "Peers")):
        view = paper.view(name)
        if view is not None:
            listed.append(
                (title, view, f"{reference}@chain" if view.has(f"{reference}@chain") else reference)
            )
    return [
        part
        for title, view, against in listed
        for part in (
            f"## {title}\n",
            arms_table(view, against, paper.titles),
            domains_table(view, against, paper.titles),
        )
    ]


def _timing(paper: Paper) -> list[str]:
    views = paper.beginning(TIMING)
    if not views:
        return []
    view, lineup = paper.view(HEADLINE), paper.lineup
    length = None
    if view is not None and view.has(lineup.both, lineup.reference):
        own, base = (
            view.mean(arm, view.headline, lambda run: run.tokens_per_cycle)
            for arm in (lineup.both, lineup.reference)
        )
        length = own / base if own and base else None
    return [
        "## Larger targets: timing only\n",
        TIMING_NOTE,
        timing_table(views, lineup.reference, _FEW, length),
    ]


def _repeat(paper: Paper) -> list[str]:
    if paper.repeat is None:
        return []
    rows = [
        (one.part, one.arm, f"{one.first:.3f}", f"{one.second:.3f}", f"{one.change:+.1%}")
        for one in paper.differences
    ]
    return [
        "## The same command twice\n",
        table(("part", "arm", "first", "second", "apart"), rows, numeric_from=2),
    ]


def _joined(parts: Mapping[str, Results]) -> Results:
    """One result file of all parts; settings are the command's."""
    first = next(iter(parts.values()))
    paper = first.settings.get("paper")
    settings = {**(paper if isinstance(paper, dict) else {}), "parts": list(parts)}
    stream = next((part.stream for part in parts.values() if part.stream is not None), None)
    learned = next((part.alignment for part in parts.values() if part.alignment is not None), None)
    updates = parts[MEMORY].updates if MEMORY in parts else ()
    return Results.joined(list(parts.values())).model_copy(
        update={"settings": settings, "stream": stream, "alignment": learned, "updates": updates}
    )


def _read(folder: Path) -> dict[str, Results]:
    parts = PaperFolder(folder).parts()
    if not parts:
        raise PaperStateError(f"{folder} holds no finished part of a paper bench")
    return parts


def _setting(part: Results, name: str) -> object:
    paper = part.settings.get("paper")
    return paper.get(name, "") if isinstance(paper, dict) else part.settings.get(name, "")
