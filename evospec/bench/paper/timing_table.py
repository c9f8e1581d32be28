"""The table of larger targets that were only timed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial

from evospec.bench.markdown import number, table
from evospec.bench.paper.gains import broken_down_ms, part_of
from evospec.bench.paper.view import PartView
from evospec.bench.results import FULL, PLAIN


def timing_table(views: Mapping[str, PartView], reference: str, few: str, length: float | None) -> str:
    """Heads and cycles of larger targets with random weights.

    Args:
        length: τ of EvoSpec by the reference's, as the headline part measured it.
    """
    rows = []
    for name, view in views.items():
        domains = view.domains
        full_ms = view.mean(FULL, domains, broken_down_ms)
        wide_ms = view.mean(reference, domains, broken_down_ms)
        for arm in view.arms:
            cycle = view.mean(arm, domains, broken_down_ms)
            head = view.mean(arm, domains, partial(part_of, label="draft head"))
            gain = None if not wide_ms or not cycle or arm == PLAIN else wide_ms / cycle
            rows.append(
                (
                    name,
                    arm,
                    f"{view.mean(arm, domains, lambda run: run.active_rows) or 0:,.0f}",
                    number(view.mean(arm, domains, lambda run: run.head_us), ".1f"),
                    number(view.mean(arm, domains, partial(part_of, label="draft layer")), ".3f"),
                    number(_sum(view, arm, ("target layers", "target head")), ".3f"),
                    number(cycle, ".3f"),
                    number(None if not head or not cycle else head / cycle, ".1%"),
                    number(None if not full_ms or not cycle or arm == PLAIN else full_ms / cycle, ".3f"),
                    number(gain, ".3f"),
                    number(gain * length if gain and length and arm in (few, "evospec") else None, ".3f"),
                )
            )
    header = (
        "shapes",
        "arm",
        "rows",
        "head µs",
        "draft layer ms",
        "verify ms",
        "cycle ms",
        "head of a cycle",
    )
    more = ("cycle, full by it", f"{reference} by it", "the same times measured τ ratio")
    return table((*header, *more), rows, numeric_from=2)


def _sum(view: PartView, arm: str, labels: Sequence[str]) -> float | None:
    found = [view.mean(arm, view.domains, partial(part_of, label=label)) for label in labels]
    known = [one for one in found if one is not None]
    return sum(known) if len(known) == len(labels) else None
