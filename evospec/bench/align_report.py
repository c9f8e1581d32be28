"""report.md of a stream that drafters adapted to, and of what updates cost."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from evospec.bench.align_arms import NONE
from evospec.bench.align_records import RECOVERED, Alignment, TopicVisit, UpdateCosts
from evospec.bench.markdown import machine_lines, number, settings_table, table
from evospec.bench.report import FILE_NAME
from evospec.bench.results import Results, Run

_STREAM_NOTES = f"""\
- All arms decode the same requests, in the same order; then each learns from its own traces, on this
  thread: decoding speeds are without it. Prompts of the split `adapt` stream, and when a topic has none left
  its conversations go on. Prompts of the split `eval` are decoded at the end and are never learned from.
- *τ*: acceptance length, tokens per draft with the bonus token. *gain*: by that of `none` with the same
  vocabulary policy on the same requests.
- *late gain*: of a visit's last quarter, 16 requests or more. A topic's plateau is that of its last visit.
- *back after*: requests since the switch before the first 16 whose gain is {RECOVERED} of the plateau.
"""
_COST_NOTES = """\
- *step*: one optimiser step; *update*: all steps between two chunks of requests, with gate and swap. Medians.
- *held*: the trainer's own copy of the drafter, what it trains, and the optimiser's moments. *peak*: the most
  that adapting had at once, activations and gradients among it. Token tables are shared with the target here
  and count for no arm. *share*: of the arm with the highest peak.
"""
_MEASURES = {
    "allocator": "- Memory is what PyTorch's allocator gave out on the device.\n",
    "tensors": "- Memory is the bytes of tensors that operations made, counted one by one: what kernels use "
    "inside is not in it, and counting makes steps slower.\n",
}


def write_align_report(results: Results, plots: Sequence[Path], folder: Path) -> Path:
    path = folder / FILE_NAME
    path.write_text(render_alignment(results, [plot.name for plot in plots]), encoding="utf-8")
    return path


def render_alignment(results: Results, plots: Sequence[str]) -> str:
    parts = ["# Adapting to a stream\n" if results.alignment else "# What updates cost\n"]
    found = results.alignment
    if found is not None:
        parts += [_told(found), _failures(found), "## Held-out prompts\n", _held_out(results.runs)]
        parts += ["## Along the stream\n", _visits(found.visits)]
    parts += [
        "## Updates\n",
        _costs(results.updates),
        *_notes(results),
        *(f"![]({plot})\n" for plot in plots),
    ]
    parts += ["## Machine\n", machine_lines(results.machine, results.git)]
    parts += ["## Settings\n", settings_table(results.settings)]
    return "\n".join(part for part in parts if part)


def _notes(results: Results) -> list[str]:
    notes = [
        _COST_NOTES,
        *(_MEASURES[measure] for measure in sorted({one.measure for one in results.updates})),
    ]
    return [("" if results.alignment is None else _STREAM_NOTES) + "".join(notes)]


def _told(found: Alignment) -> str:
    text = f"{found.requests} requests, {found.continued} of which went on from an earlier answer"
    if found.requests < found.planned:
        text += f"; {found.planned} were planned, but the time was up"
    return text + ".\n"


def _failures(found: Alignment) -> str:
    return "".join(
        f"- FAILED: {one.arm}, after {one.place} requests: {one.problem}\n" for one in found.failures
    )


def _held_out(runs: Sequence[Run]) -> str:
    if not runs:
        return "Not decoded yet.\n"
    base = {(run.domain, run.policy): run.acceptance_length for run in runs if run.arm == NONE}
    rows = []
    for run in runs:
        gain = run.acceptance_length / base[run.domain, run.policy] - 1
        rows.append(
            (
                run.domain,
                run.name,
                f"{run.acceptance_length:.3f}",
                f"{gain:+.1%}",
                ", ".join(f"{rate:.2f}" for rate in run.acceptance_by_position),
                f"{run.coverage:.3f}",
                f"{run.tokens_per_s:.1f}",
                str(run.prompts),
            )
        )
    header = ("domain", "arm", "τ", "gain", "accepted by position", "coverage", "tokens/s", "prompts")
    return table(header, rows, numeric_from=2)


def _visits(visits: Sequence[TopicVisit]) -> str:
    rows = [
        (
            str(one.visit),
            one.topic + (" (return)" if one.returns else ""),
            one.arm,
            str(one.requests),
            f"{one.acceptance_length:.3f}",
            f"{one.gain - 1:+.1%}",
            f"{one.late_gain - 1:+.1%}",
            number(one.recovered_after, "d"),
        )
        for one in visits
        if one.arm.partition("@")[0] != NONE
    ]
    header = ("visit", "topic", "arm", "requests", "τ", "gain", "late gain", "back after")
    return table(header, sorted(rows, key=lambda row: int(row[0])), numeric_from=3)


def _costs(costs: Sequence[UpdateCosts]) -> str:
    most = max((one.peak_mb for one in costs), default=0.0)
    rows = [
        (
            one.arm,
            f"{one.trained_parameters / 1e6:.2f} M",
            str(one.updates),
            str(one.steps),
            str(one.published),
            str(one.rejected),
            f"{one.step_ms:.1f}",
            f"{one.update_ms:.1f}",
            f"{one.held_mb:.1f}",
            f"{one.peak_mb:.1f}",
            f"{one.peak_mb / most:.0%}" if most else "-",
        )
        for one in costs
    ]
    header = (
        "arm",
        "trained",
        "updates",
        "steps",
        "published",
        "rejected",
        "ms a step",
        "ms an update",
        "held MB",
        "peak MB",
        "share",
    )
    return table(header, rows)
