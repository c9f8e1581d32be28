"""What is on disk of a paper bench in progress: one result file a part, and what they must agree on."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from pydantic import Field, ValidationError

from evospec.bench.paper.fingerprint import PaperFingerprint
from evospec.bench.paper.names import in_order
from evospec.bench.record import Record
from evospec.bench.results import Results
from evospec.errors import EvoSpecError

_STATE = "paper.json"
_PARTS = "parts"
# In a part's settings: how long it took, and how many batches it had no time for.
SECONDS, LEFT_OUT = "seconds", "left_out"


class PaperStateError(EvoSpecError):
    """A folder that this run can't go on in."""


class Progress(Record):
    """Attributes:
    expected: seconds of parts that were given up for lack of time, as it then seemed.
    failed: parts that broke, and how; the next call tries them again.
    """

    fingerprint: PaperFingerprint
    expected: dict[str, float] = Field(default_factory=dict)
    failed: dict[str, str] = Field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class PaperFolder:
    """A run's folder. Files are written whole: an interruption leaves what was finished before."""

    path: Path

    def open(self, now: PaperFingerprint, *, restart: bool, mixed: bool) -> Progress:
        """Makes the folder, or checks that what is in it was measured alike.

        Args:
            restart: begins again if it was not.
            mixed: goes on all the same; parts say what they were measured with.

        Raises:
            PaperStateError: it can't be written, or holds something else.
        """
        try:
            (self.path / _PARTS).mkdir(parents=True, exist_ok=True)
            if restart:
                self._clear()
            found = self._progress()
            if found is None or (mixed and found.fingerprint.changed(now)):
                found = Progress(fingerprint=now)
                self.save(found)
        except OSError as error:
            raise PaperStateError(
                f"cannot write into {self.path}: {error.strerror}; choose another --out"
            ) from None
        changed = found.fingerprint.changed(now)
        if changed:
            raise PaperStateError(
                f"{self.path} was begun with other {' and '.join(changed)}: choose another --out, begin "
                "again with --restart, or keep what was measured with --mixed"
            )
        return found

    def save(self, progress: Progress) -> None:
        _write(self.path / _STATE, progress.model_dump_json(indent=2) + "\n")

    def keep(self, name: str, results: Results) -> None:
        _write(self._file(name), results.to_json())

    def parts(self) -> dict[str, Results]:
        """Results of the parts that are done, in the order of reports. Raises EvoSpecError."""
        files = (self.path / _PARTS).glob("*.json")
        return in_order({file.stem: Results.read(file) for file in files})

    def _file(self, name: str) -> Path:
        return self.path / _PARTS / f"{name}.json"

    def _progress(self) -> Progress | None:
        file = self.path / _STATE
        if not file.exists():
            return None
        try:
            return Progress.model_validate_json(file.read_bytes())
        except ValidationError:
            raise PaperStateError(f"{file} is not a paper bench's: begin again with --restart") from None

    def _clear(self) -> None:
        shutil.rmtree(self.path / _PARTS)
        shutil.rmtree(self.path / "adapters", ignore_errors=True)
        (self.path / _PARTS).mkdir()
        (self.path / _STATE).unlink(missing_ok=True)


def seconds_of(part: Results) -> float:
    """How long a part took; 0: it was not told."""
    value = part.settings.get(SECONDS)
    return float(value) if isinstance(value, int | float) else 0.0


def _write(file: Path, text: str) -> None:
    partial = file.with_suffix(".partial")
    partial.write_text(text, encoding="utf-8")
    os.replace(partial, file)
