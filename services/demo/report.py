"""report.md of a demo."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from evospec.bench.markdown import machine_lines, settings_table, table
from services.demo.results import AlignerSummary, ControllerSummary, DemoResults, DemoRun

FILE_NAME = "report.md"

_PLOT_NOTES = {
    "acceptance_over_time.png": "Tokens per cycle: each request, and all replicas together over a sliding "
    "window. Bands are topics; a dashed line marks when a version had reached all replicas.",
    "active_rows_over_time.png": "Rows of the LM head that each replica's drafter scores.",
    "speed_over_time.png": "Tokens per second of all replicas together.",
    "rounds.png": "Each topic comes twice, with other prompts the second time.",
}
_READING = """\
- *τ*: acceptance length, tokens per draft-and-verify cycle, the bonus token included; plain decoding is 1.
- *tokens/s*: of one request, as its client saw it; median over requests.
- *coverage*: share of the target's tokens that were among the drafter's active rows.
- Rounds ask different prompts about the same topics, a few each: small differences between them are chance.
- The output is the target's own whatever the drafter has learned: every token is verified over the full
  vocabulary.
"""


def write_report(results: DemoResults, plots: Sequence[Path], folder: Path) -> Path:
    path = folder / FILE_NAME
    path.write_text(render(results, [plot.name for plot in plots]), encoding="utf-8")
    return path


def render(results: DemoResults, plots: Sequence[str]) -> str:
    parts = [
        f"# EvoSpec demo: {results.settings['target']}, {results.settings['replicas']} replicas\n",
        _verdict(results),
        "## Topics\n",
        _topics(results.runs),
        "## Adapter versions\n",
        _versions(results),
        "## Over time\n",
        *(f"![{Path(plot).stem.replace('_', ' ')}]({plot})\n\n{_PLOT_NOTES[plot]}\n" for plot in plots),
        "## How to read this\n",
        _READING,
        "## Machine\n",
        machine_lines(results.machine, results.git),
        "## Settings\n",
        settings_table(results.settings),
    ]
    return "\n".join(parts)


def headline(results: DemoResults) -> str:
    """The demo in one line."""
    answered = [record for record in results.requests if not record.failed]
    tokens = sum(record.tokens for record in answered)
    seconds = max((record.finished_s for record in results.requests), default=0.0)
    rate = tokens / seconds if seconds else 0.0
    return (
        f"{len(answered)} of {len(results.requests)} requests answered, {tokens:,} tokens in {seconds:.0f} s "
        f"({rate:.1f} tokens/s), {len(results.rollouts)} adapter versions rolled out to all replicas"
    )


def _verdict(results: DemoResults) -> str:
    lines = [f"{headline(results)}.\n"]
    lines += [f"- **Fell short**: {problem}" for problem in results.problems]
    return "\n".join(lines) + ("\n" if results.problems else "")


def _topics(runs: Sequence[DemoRun]) -> str:
    header = (
        "topic",
        "round",
        "requests",
        "tokens",
        "τ",
        "tokens/s",
        "active rows",
        "coverage",
        "draft ms",
        "verify ms",
    )
    rows = [
        (
            run.domain,
            str(run.round),
            str(run.prompts),
            f"{run.tokens:,}",
            f"{run.acceptance_length:.2f}",
            f"{run.tokens_per_s:.1f}",
            f"{run.active_rows:,.0f}",
            f"{run.coverage:.3f}",
            f"{run.draft_ms:.1f}",
            f"{run.verify_ms:.1f}",
        )
        for run in runs
    ]
    return table(header, rows)


def _versions(results: DemoResults) -> str:
    rows = [(f"v{one.version}", f"{one.time_s:.0f}") for one in results.rollouts]
    parts = [table(("version", "on all replicas after (s)"), rows)] if rows else ["None was rolled out.\n"]
    if results.aligner is not None:
        parts.append(_learned(results.aligner, results.index_points))
    if results.controller is not None:
        parts.append(_decided(results.controller))
    return "\n".join(parts)


def _learned(aligner: AlignerSummary, index_points: int) -> str:
    return (
        f"The aligner received {aligner.traces} traces, made {aligner.steps} steps, and judged "
        f"{aligner.candidates} candidates on traces that it had not learned from: {aligner.published} "
        f"were published, {aligner.rejected} did not gain more than {aligner.min_gain:g} tokens a cycle "
        "over the version at hand. "
        f"The token index holds {index_points} contexts.\n"
    )


def _decided(controller: ControllerSummary) -> str:
    text = f"The rollout controller promoted {controller.promoted} and revoked {controller.revoked} of them."
    return f"{text} Its last verdict is on {controller.verdict}.\n" if controller.verdict else f"{text}\n"
