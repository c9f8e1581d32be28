"""report.md of a paper bench."""
from __future__ import annotations
from collections.abc import Mapping
from pathlib import Path
from evospec.bench.results import Results

def write_paper(parts: Mapping[str, Results], folder: Path) -> Results:
    joined = Results.joined(list(parts.values()))
    joined.write(folder)
    return joined
