"""The figures of docs/concepts.md are drawn from what was recorded."""

from __future__ import annotations

import runpy
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
MADE: dict[str, Any] = runpy.run_path(str(ROOT / "infra" / "concept_figures.py"))


def recorded() -> Any:
    return MADE["Recorded"].from_json((MADE["FOLDER"] / "cycles.json").read_text(encoding="utf-8"))


def test_they_can_be_drawn_again(tmp_path: Path) -> None:
    drawn = MADE["draw"](recorded(), tmp_path)
    assert [path.name for path in drawn] == ["rows.png", "acceptance.png"]
    for path in drawn:
        assert path.read_bytes().startswith(b"\x89PNG")
        assert (MADE["FOLDER"] / path.name).exists()


def test_what_was_recorded_makes_sense() -> None:
    run = recorded()
    assert [one.topic for one in run.topics] == list(MADE["TOPICS"])
    tokens = [one.tokens for one in run.cycles]
    assert tokens == sorted(tokens)
    assert all(0 <= one.covered <= one.coverable for one in run.cycles)
    assert {name for one in run.cycles for name in one.rows} <= set(MADE["SOURCES"])
    for one in run.topics:
        assert one.attempted[0] > 0
        pairs = zip(one.attempted[1:], one.accepted, strict=False)
        assert all(attempted <= before for attempted, before in pairs)
