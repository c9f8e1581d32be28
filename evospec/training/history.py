"""What happened in training, a line of JSON for every few steps."""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from evospec.errors import EvoSpecError
from evospec.training.disk import write_text
from evospec.training.progress import Progress, StepFigures

FILE = "history.jsonl"
_LINES = 400  # of a whole run


class HistoryLine(BaseModel):
    """Means over the steps since the line before.

    Attributes:
        step, tokens, seconds: totals; seconds of the budget.
        rate: learning rate of the last step.
        held_out: acceptance length on held-out conversations, where it was measured.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    step: int
    tokens: int
    seconds: float
    share: float
    loss: float
    accuracy: tuple[float, ...]
    rate: float
    grad_norm: float
    held_out: float | None = None


class History:
    """The lines of an output folder, kept in memory; `flush` writes the file."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / FILE
        self.lines: list[HistoryLine] = []
        self._since: list[StepFigures] = []

    def add(self, progress: Progress) -> None:
        """Takes in the latest step; a line is due each 400th of the budget."""
        if progress.latest is None:
            return
        self._since.append(progress.latest)
        last = self.lines[-1].share if self.lines else 0.0
        if progress.share - last >= 1 / _LINES or not self.lines:
            self.close_line(progress)

    def close_line(self, progress: Progress, held_out: float | None = None) -> None:
        """Ends a line here."""
        steps, self._since = self._since, []
        if steps:
            self.lines.append(_line(progress, steps, held_out))
        elif self.lines and held_out is not None:
            # Measured right where a line ended.
            self.lines[-1] = self.lines[-1].model_copy(update={"held_out": held_out})

    def flush(self) -> None:
        """Writes the file. Raises OSError when the disk is full."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        write_text(self.path, "".join(line.model_dump_json() + "\n" for line in self.lines))

    def resume(self, step: int) -> None:
        """Takes up the lines that a file has up to a step.

        Raises:
            EvoSpecError: a line is not one of a history.
        """
        if not self.path.is_file():
            return
        lines = self.path.read_text(encoding="utf-8").splitlines()
        try:
            parsed = [HistoryLine.model_validate_json(line) for line in lines if line]
        except ValidationError:
            raise EvoSpecError(f"{self.path} is damaged: remove it, and resume again") from None
        self.lines = [line for line in parsed if line.step <= step]


def _line(progress: Progress, steps: list[StepFigures], held_out: float | None) -> HistoryLine:
    count = len(steps)
    return HistoryLine(
        step=progress.step,
        tokens=progress.tokens,
        seconds=round(progress.elapsed, 3),
        share=progress.share,
        loss=sum(step.loss for step in steps) / count,
        accuracy=tuple(
            sum(values) / count for values in zip(*(step.accuracy for step in steps), strict=True)
        ),
        rate=steps[-1].rate,
        grad_norm=sum(step.grad_norm for step in steps) / count,
        held_out=held_out,
    )
