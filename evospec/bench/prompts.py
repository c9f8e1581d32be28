"""Prompt files: JSON lines with `prompt`, and optionally `domain`, `id` and `split`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from evospec.errors import EvoSpecError


class PromptFileError(EvoSpecError):
    """A prompt file that can't be read, or that holds nothing to run."""


@dataclass(frozen=True, slots=True)
class Prompt:
    id: str
    domain: str
    text: str


class _Row(BaseModel):
    """One line; further keys (source, licence) are allowed."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    prompt: str = Field(min_length=1)
    domain: str | None = None
    id: str | None = None
    split: str | None = None


def read_prompts(
    files: Sequence[Path], *, split: str | None = None, limit: int | None = None
) -> list[Prompt]:
    """Prompts in file order, grouped by domain in order of first appearance.

    Args:
        split: keep only rows of this split; rows without one are left out then.
        limit: prompts per domain.

    Raises:
        PromptFileError: naming file and line.
    """
    by_domain: dict[str, list[Prompt]] = {}
    splits: Counter[str] = Counter()
    for file in files:
        for number, row in _rows(file):
            splits[row.split or "none"] += 1
            if split is not None and row.split != split:
                continue
            domain = row.domain or file.stem
            kept = by_domain.setdefault(domain, [])
            if limit is None or len(kept) < limit:
                kept.append(Prompt(row.id or f"{file.stem}/{number}", domain, row.prompt))
    if not by_domain:
        raise PromptFileError(_nothing_found(files, split, splits))
    return [prompt for prompts in by_domain.values() for prompt in prompts]


def _rows(file: Path) -> Iterator[tuple[int, _Row]]:
    try:
        lines = file.read_text(encoding="utf-8").split("\n")
    except UnicodeDecodeError:
        raise PromptFileError(f"{file} is not a text file in UTF-8") from None
    except OSError as error:
        raise PromptFileError(f"cannot read prompt file {file}: {error.strerror}") from None
    for number, line in enumerate(lines, start=1):
        if line.strip():
            yield number, _parse(file, number, line)


def _parse(file: Path, number: int, line: str) -> _Row:
    try:
        return _Row.model_validate_json(line)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"])
        problem = f"`{field}`: {first['msg']}" if field else first["msg"]
        raise PromptFileError(f"{file}, line {number}: {problem}") from None


def _nothing_found(files: Iterable[Path], split: str | None, splits: Counter[str]) -> str:
    names = ", ".join(str(file) for file in files)
    if not splits:
        return f"no prompts in {names}: each line must be a JSON object with `prompt`"
    present = ", ".join(sorted(splits))
    return f"no prompts of split {split!r} in {names}: the splits there are {present}"
