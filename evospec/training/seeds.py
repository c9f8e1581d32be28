"""What conversations start from: openings and tasks that ship with EvoSpec, prompts that users bring."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.resources import files


@dataclass(frozen=True, slots=True)
class Seeds:
    """What conversations start from: `openings` of user turns for the target to complete, `prompts`
    given whole, `tasks` with a `{passage}` to fill."""

    openings: tuple[str, ...]
    prompts: tuple[str, ...] = ()
    tasks: tuple[str, ...] = ()

    @classmethod
    def shipped(cls, prompts: tuple[str, ...] = ()) -> Seeds:
        """EvoSpec's own openings (the empty one lets the target choose freely) and tasks."""
        return cls(("", *_read_lines("openings.txt")), prompts, _read_lines("tasks.txt"))


def _read_lines(name: str) -> tuple[str, ...]:
    text = files("evospec.training").joinpath(name).read_text(encoding="utf-8")
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    return tuple(line.replace("\\n", "\n") for line in lines)
