"""report.md of a stream bench."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from evospec.bench.markdown import machine_lines, number, settings_table, table
from evospec.bench.report import FILE_NAME, failures_section, output_cell
from evospec.bench.results import Results, Run
from evospec.bench.stream_records import AfterSwitch, Stream
from evospec.bench.totals import NOTES as TOTALS_NOTES
from evospec.bench.totals import totals_table

_NOTES = """\
- The topic changes every so many requests; one request runs at a time, and all arms decode it before the
  next one. Engines keep what they learn. The first topic follows no switch, so it is in no figure *after a
  switch*.
- *coverage*: share of the target's tokens that were among the rows that the drafter scored. *τ*: acceptance
  length, tokens per draft with the bonus token.
- *request*: its number after a switch, over all switches; *first 20*: of the first 20 tokens of each.
- *recovered after*: generated tokens between a switch and the first 20 whose coverage, over all switches, is
  {recovered} or more.
- *output*: plain decoding's, token by token; in bfloat16 it may differ by near-ties.
"""


def write_stream_report(results: Results, stream: Stream, plots: Sequence[Path], folder: Path) -> Path:
    path = folder / FILE_NAME
    path.write_text(render_stream(results, stream, [plot.name for plot in plots]), encoding="utf-8")
    return path


def render_stream(results: Results, stream: Stream, plots: Sequence[str]) -> str:
    settings = results.settings
    parts = [f"# Stream bench: {results.runs[0].target}, {settings['dtype']}\n", _what(results)]
    parts += [failures_section(results.failures)] if results.failures else []
    parts += [f"![{Path(plot).stem.replace('_', ' ')}]({plot})\n" for plot in plots]
    if any(arm.switches for arm in stream.arms):
        parts += ["## After a switch\n", _recovery(stream), "Coverage:\n", _coverage(stream.arms)]
        parts += ["τ:\n", _lengths(stream.arms)]
    parts += ["## Topics\n", _topics(results.runs), "## All topics\n", totals_table(results.runs)]
    parts += ["## How to read this\n", _NOTES.format(recovered=stream.recovered) + TOTALS_NOTES]
    parts += ["## Machine\n", machine_lines(results.machine, results.git)]
    parts += ["## Settings\n", settings_table(settings)]
    return "\n".join(parts)


def _what(results: Results) -> str:
    settings = results.settings
    topics = list(dict.fromkeys(run.domain for run in results.runs))
    warm = "; policies had learned from other prompts before" if settings["warm"] else ""
    rounds = f"{settings['rounds']} round{'s' * (settings['rounds'] != 1)}"
    return f"Topics in turn: {', '.join(topics)}; {settings['every']} requests each, {rounds}{warm}.\n"


def _recovery(stream: Stream) -> str:
    rows = []
    for arm in stream.arms:
        after = arm.recovered_after
        second = next((nth for nth in arm.requests if nth.number == 2), None)
        rows.append(
            (
                arm.arm,
                str(arm.switches),
                "-" if after is None else f"{after} tokens",
                number(None if second is None else second.first_coverage, ".3f"),
            )
        )
    header = ("arm", "switches", "recovered after", "first 20 tokens of the second request")
    return table(header, rows)


def _coverage(arms: Sequence[AfterSwitch]) -> str:
    count = max(len(arm.requests) for arm in arms)
    places = range(1, count + 1)
    header = ["arm", *(label for place in places for label in (f"request {place}", "first 20"))]
    rows = []
    for arm in arms:
        cells = [arm.arm]
        for nth in arm.requests:
            cells += [number(nth.coverage, ".3f"), number(nth.first_coverage, ".3f")]
        rows.append(cells)
    return table(header, rows)


def _lengths(arms: Sequence[AfterSwitch]) -> str:
    count = max(len(arm.requests) for arm in arms)
    header = ["arm", *(f"request {place}" for place in range(1, count + 1))]
    rows = [[arm.arm, *(f"{nth.acceptance_length:.2f}" for nth in arm.requests)] for arm in arms]
    return table(header, rows)


def _topics(runs: Sequence[Run]) -> str:
    header = (
        "topic",
        "arm",
        "τ",
        "share of full τ",
        "active rows",
        "coverage",
        "tokens/s",
        "speed-up",
        "output",
    )
    return table(header, [_topic(run) for run in runs if run.drafting is not None], numeric_from=2)


def _topic(run: Run) -> tuple[str, ...]:
    if run.failed:
        return (run.domain, run.name, "FAILED", *["-"] * 5, output_cell(run))
    return (
        run.domain,
        run.name,
        f"{run.acceptance_length:.2f}",
        number(run.share_of_full, ".1%"),
        f"{run.active_rows:,.0f}",
        f"{run.coverage:.3f}",
        f"{run.tokens_per_s:.1f}",
        number(run.speedup, ".2f"),
        output_cell(run),
    )
