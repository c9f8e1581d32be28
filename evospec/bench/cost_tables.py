"""What arms cost besides their cycles, as tables of a report."""

from __future__ import annotations

from collections.abc import Sequence

from evospec.bench.costs import ArmCosts, Change
from evospec.bench.markdown import number, table

_UPKEEP = ("arm", "change", "rows", "call µs", "added µs", "cycle µs", "share of a cycle", "captures")
_MEMORY = ("arm", "weights", "KV", "overhead", "models", "buffers", "graphs", "transient")
_CAPTURES = ("arm", "graphs captured before", "in timed turns")
NOTES = """\
- *graphs captured*: CUDA graphs. In timed turns each takes many times a cycle: an arm with any there is
  slower in this report than in service.
- *change*: 256 tokens offered to the active rows, or another adapter, while requests run. *call* is the
  call itself, which may wait for a cycle under way. *added* is what the call and the cycles around it take
  longer than as many cycles without a change, in the median: rows are written while the device is busy, so
  little of the work need show. Below 0 it is the noise of the measurement.
- *overhead* is all device memory but *weights*, which arms share, and keys and values (*KV*): what loaded
  models hold besides parameters (*models*), what the engine keeps (*buffers*), what the device has less of
  after graphs were captured (*graphs*, by the driver; the first arms load kernels for all), and what a
  turn allocates for a while (*transient*). MiB.
"""


def cost_sections(arms: Sequence[ArmCosts]) -> list[str]:
    """Parts of a report about arms of one batch size; none when there is nothing to tell."""
    parts: list[str] = []
    if any(arm.captures_before or arm.captures_timed for arm in arms):
        rows = [(arm.name, f"{arm.captures_before:,}", f"{arm.captures_timed:,}") for arm in arms]
        parts += ["CUDA graphs:\n", table(_CAPTURES, rows)]
    changes = [row for arm in arms for row in _changes(arm)]
    if changes:
        parts += ["Changes between cycles:\n", table(_UPKEEP, changes, numeric_from=2)]
    memory = [row for arm in arms for row in _memory(arm)]
    if memory:
        parts += ["Device memory, MiB:\n", table(_MEMORY, memory)]
    return parts


def _changes(arm: ArmCosts) -> list[tuple[str, ...]]:
    upkeep = arm.upkeep
    if upkeep is None:
        return []
    named: tuple[tuple[str, Change | None], ...] = (
        ("active rows", upkeep.update),
        ("adapter", upkeep.swap),
    )
    return [
        (
            arm.name,
            name,
            number(change.rows, ",.0f"),
            f"{change.call_us:,.0f}",
            f"{change.added_us:,.0f}",
            f"{upkeep.cycle_us:,.0f}",
            f"{change.share:.1%}",
            str(change.captures),
        )
        for name, change in named
        if change is not None
    ]


def _memory(arm: ArmCosts) -> list[tuple[str, ...]]:
    memory = arm.memory
    if memory is None:
        return []
    values = (
        memory.weights_mb,
        memory.cache_mb,
        memory.overhead_mb,
        memory.models_mb,
        memory.buffers_mb,
        memory.graphs_mb,
        memory.transient_mb,
    )
    return [(arm.name, *(f"{value:,.0f}" for value in values))]
