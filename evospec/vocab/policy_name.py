"""Vocabulary policies as they are written in configs and on the command line."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

from evospec.config import SourceName
from evospec.errors import EvoSpecError

CHOICES = (
    "`evospec`, `evospec[SOURCE+SOURCE]`, `full`, `nanospec`, `vocabtrim:K`, `fr-spec:K`, `fr-spec:K:FILE`, "
    "or `specvocab:RANK:K`"
)
_SOURCES: tuple[SourceName, ...] = get_args(SourceName)


@dataclass(frozen=True, slots=True)
class PolicyName:
    """A policy.

    Attributes:
        rows: of a static list, or re-scored exactly by a preview.
        rank: of a preview.
        corpus: what the frequencies of a static list are counted in.
        sources: of a dynamic policy; None leaves them to the config.
    """

    kind: str
    rows: int | None = None
    rank: int | None = None
    corpus: Path | None = None
    sources: tuple[SourceName, ...] | None = None

    @classmethod
    def parse(cls, text: str) -> PolicyName:
        """Raises EvoSpecError naming what is known."""
        if text in ("full", "evospec", "nanospec"):
            return cls(text)
        if match := re.fullmatch(r"evospec\[([a-z+]*)\]", text):
            return cls("evospec", sources=_sources(text, match[1]))
        if match := re.fullmatch(r"(vocabtrim|fr-spec):([1-9][0-9]*)", text):
            return cls(match[1], rows=int(match[2]))
        if match := re.fullmatch(r"fr-spec:([1-9][0-9]*):(.+)", text):
            return cls("fr-spec", rows=int(match[1]), corpus=Path(match[2]))
        if match := re.fullmatch(r"specvocab:([1-9][0-9]*):([1-9][0-9]*)", text):
            return cls("specvocab", rank=int(match[1]), rows=int(match[2]))
        raise EvoSpecError(f"unknown vocabulary policy {text!r}: choose {CHOICES}")


def _sources(text: str, names: str) -> tuple[SourceName, ...]:
    written = [name for name in names.split("+") if name]
    unknown = [name for name in written if name not in _SOURCES]
    if unknown:
        raise EvoSpecError(
            f"unknown source {unknown[0]!r} in {text!r}: choose from {', '.join(_SOURCES)}, joined by `+`"
        )
    return tuple(source for source in _SOURCES if source in written)
