"""What one scenario showed: a line on the screen, and a line of JSON for the reliability page."""

from __future__ import annotations

import os
from pathlib import Path

from pydantic import BaseModel, ConfigDict

# File that records are added to; unset, they are only printed.
REPORT = "EVOSPEC_CHAOS_REPORT"


class ScenarioRecord(BaseModel):
    """One row of the page.

    Attributes:
        part: heading that the row stands under.
        recovery: from when until when `recovery_s` counts; empty where nothing had to recover.
        bar_s: what it may be at most, where that was promised.
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
    recovery_s: float | None
    recovery: str
    bar_s: float | None = None
    notes: tuple[str, ...] = ()

    def line(self) -> str:
        causes = ", ".join(f"{count} x {cause}" for cause, count in self.retried.items())
        parts = [
            f"{self.sent} sent, {self.failed} failed, {self.lost} lost",
            f"{sum(self.retried.values())} retried{f' ({causes})' if causes else ''}",
            f"{self.wrong} of {self.compared} tokens wrong",
        ]
        if self.recovery_s is not None:
            parts.append(f"{self.recovery_s:.3g} s {self.recovery}")
        return f"{self.scenario}: {'; '.join([*parts, *self.notes])}"


def publish(record: ScenarioRecord) -> None:
    """Prints the record, and adds it to the report's file where there is one."""
    print(f"\n{record.line()}")
    if file := os.environ.get(REPORT):
        with Path(file).open("a") as report:
            report.write(record.model_dump_json() + "\n")


def read_records(file: Path) -> list[ScenarioRecord]:
    return [ScenarioRecord.model_validate_json(line) for line in file.read_text().splitlines()]
