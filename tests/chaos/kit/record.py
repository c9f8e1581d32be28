"""What one scenario showed: a line on the screen, and a line of JSON for the reliability page."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict

# File that records are added to; unset, they are only printed.
REPORT = "EVOSPEC_CHAOS_REPORT"


class ScenarioRecord(BaseModel):
    """One row of the page.

    Attributes:
        part: heading that the row stands under.
        took: how long it took, in `unit`; None where nothing had to recover.
        what: from when until when that counts.
        bar: what it may be at most, where that was promised.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    part: str
    scenario: str
    sent: int
    failed: int
    lost: int
    retried: dict[str, int]
    compared: int
    wrong: int
    took: float | None
    unit: Literal["s", "cycles"] = "s"
    what: str
    bar: float | None = None
    notes: tuple[str, ...] = ()

    def line(self) -> str:
        causes = ", ".join(f"{count} x {cause}" for cause, count in self.retried.items())
        parts = [
            f"{self.sent} sent, {self.failed} failed, {self.lost} lost",
            f"{sum(self.retried.values())} retried{f' ({causes})' if causes else ''}",
            f"{self.wrong} of {self.compared} tokens wrong",
        ]
        if self.took is not None:
            parts.append(f"{self.took:.3g} {self.unit} {self.what}")
        return f"{self.scenario}: {'; '.join([*parts, *self.notes])}"


def publish(record: ScenarioRecord) -> None:
    """Prints the record, and adds it to the report's file where there is one."""
    print(f"\n{record.line()}")
    if file := os.environ.get(REPORT):
        with Path(file).open("a") as report:
            report.write(record.model_dump_json() + "\n")


def read_records(file: Path) -> list[ScenarioRecord]:
    return [ScenarioRecord.model_validate_json(line) for line in file.read_text().splitlines()]
