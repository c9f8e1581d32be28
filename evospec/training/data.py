"""Training data that users bring: JSON lines with prompts for the target to answer, or finished texts."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

from evospec.errors import EvoSpecError


@dataclass(frozen=True, slots=True)
class TrainingData:
    """`prompts` are user turns that the target answers; `openings` beginnings that it completes first."""

    prompts: tuple[str, ...]
    openings: tuple[str, ...]


def read_training_data(paths: Sequence[Path], split: str | None = None) -> TrainingData:
    """Reads JSON-lines files with a `prompt` each, and EvoSpec's own openings.

    Args:
        split: only lines whose `split` is this; None takes all.

    Raises:
        EvoSpecError: naming file and line of what can't be read, or that nothing was found.
    """
    prompts: list[str] = []
    for path in paths:
        found = _read_prompts(path, split)
        if not found:
            chosen = f" with split {split!r}" if split else ""
            raise EvoSpecError(f"{path}: no prompts{chosen}; expected JSON lines with a `prompt`")
        prompts += found
    return TrainingData(tuple(dict.fromkeys(prompts)), read_openings())


def read_openings() -> tuple[str, ...]:
    """Beginnings of user turns; the empty one lets the target choose freely."""
    text = files("evospec.training").joinpath("openings.txt").read_text(encoding="utf-8")
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    return ("", *(line.replace("\\n", "\n") for line in lines))


def _read_prompts(path: Path, split: str | None) -> list[str]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise EvoSpecError(f"training data {path} cannot be read: {error}") from None
    prompts = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
            prompt, of_split = record["prompt"], record.get("split")
        except (ValueError, KeyError, TypeError, AttributeError):
            raise EvoSpecError(f"{path}:{number}: expected a JSON object with a `prompt`") from None
        if split is None or of_split == split:
            prompts.append(str(prompt))
    return prompts
