"""Names of parts, and their order in reports."""

from __future__ import annotations

from collections.abc import Mapping

from evospec.bench.results import Results

LEARN, HEADLINE, STREAM, SAMPLED = "learn", "headline", "stream", "sampled"
TREES, PEERS, MEMORY = "trees", "peers", "memory"
BATCH, TIMING = "batch-", "timing-"
_ORDER = (LEARN, HEADLINE, STREAM, BATCH, TREES, SAMPLED, PEERS, MEMORY, TIMING)


def in_order(parts: Mapping[str, Results]) -> dict[str, Results]:
    """The order in which parts run, whenever they were measured."""
    return dict(sorted(parts.items(), key=lambda entry: _place(entry[0])))


def _place(name: str) -> tuple[int, int, str]:
    place = next((number for number, known in enumerate(_ORDER) if name.startswith(known)), len(_ORDER))
    size = name.removeprefix(BATCH)
    return place, int(size) if size.isdigit() else 0, name
