"""What a paper bench in progress must keep: settings, code and machine."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from evospec.bench.machine import describe_machine
from evospec.bench.paper.settings import PaperSettings
from evospec.bench.record import Record

_SOURCES = Path(__file__).resolve().parents[2]
_DIGITS = 16
# What only reads results changes none of them.
_READERS = (
    *("report", "plot", "table", "markdown", "style", "cli", "notes"),
    *("bars", "causes", "gains", "diff", "view", "measured"),
)


class PaperFingerprint(Record):
    """Short hashes (16 hexadecimal digits); the machine is its GPU, or its processor without one."""

    settings: str
    code: str
    machine: str

    @classmethod
    def of(cls, settings: PaperSettings) -> PaperFingerprint:
        described = {
            "settings": settings.described(),
            "prompts": [_hash_file(one) for one in settings.prompts],
        }
        found = describe_machine()
        device = found.cpu if found.gpu is None else found.gpu
        return cls(
            settings=_hash(json.dumps(described, sort_keys=True).encode()),
            code=code_hash(),
            machine=_hash(f"{device} {found.torch} {found.transformers}".encode()),
        )

    def changed(self, now: PaperFingerprint) -> list[str]:
        """Which of the three are not what they were."""
        before, after = self.model_dump(), now.model_dump()
        return [name for name in before if before[name] != after[name]]


def code_hash() -> str:
    """Of the sources that measure."""
    digest = hashlib.sha256()
    for file in sorted(_SOURCES.rglob("*.py")):
        if file.parent.name in ("bench", "paper") and any(word in file.stem for word in _READERS):
            continue
        digest.update(str(file.relative_to(_SOURCES)).encode() + file.read_bytes())
    return digest.hexdigest()[:_DIGITS]


def _hash_file(file: Path) -> str:
    return _hash(file.read_bytes())


def _hash(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:_DIGITS]
