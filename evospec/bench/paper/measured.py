"""Everything that a paper bench has measured so far."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from evospec.bench.paper.diff import Difference, compare
from evospec.bench.paper.gains import Gain, gain_of
from evospec.bench.paper.lineup import Lineup
from evospec.bench.paper.names import HEADLINE
from evospec.bench.paper.settings import ALIGNED, LORA, ONLINE
from evospec.bench.paper.view import PartView
from evospec.bench.results import FULL, PLAIN, Results


@dataclass(frozen=True, slots=True)
class Paper:
    """Everything that was measured.

    Attributes:
        parts: in the order of the report.
        repeat: of the same command, another time; None: there is none.
    """

    parts: Mapping[str, Results]
    lineup: Lineup
    repeat: Mapping[str, Results] | None = None

    @classmethod
    def of(cls, parts: Mapping[str, Results], repeat: Mapping[str, Results] | None = None) -> Paper:
        return cls(parts, lineup_of(parts), repeat)

    @property
    def titles(self) -> dict[str, str]:
        return self.lineup.titles(run.name for part in self.parts.values() for run in part.runs)

    def view(self, name: str) -> PartView | None:
        return PartView(self.parts[name]) if name in self.parts else None

    def beginning(self, name: str) -> dict[str, PartView]:
        """Views of parts whose names begin so, by the rest of them."""
        return {
            known.removeprefix(name): PartView(part)
            for known, part in self.parts.items()
            if known.startswith(name)
        }

    @property
    def gains(self) -> list[Gain]:
        view = self.view(HEADLINE)
        if view is None:
            return []
        arms = [arm for arm in view.arms if arm not in (PLAIN, FULL) and not view.failed(arm)]
        return [gain for arm in arms if (gain := gain_of(view, arm, view.headline)) is not None]

    @property
    def differences(self) -> list[Difference]:
        return [] if self.repeat is None else compare(self.parts, self.repeat)


def lineup_of(parts: Mapping[str, Results]) -> Lineup:
    """Who took part, as the results tell."""
    settings = next(iter(parts.values())).settings.get("paper")
    listed = settings.get("statics") if isinstance(settings, dict) else None
    rows = [int(str(one)) for one in listed] if isinstance(listed, list) else [32_768]
    arms = {run.name.partition("@")[0] for part in parts.values() for run in part.runs}
    learned = tuple(name for name in (ALIGNED, LORA, ONLINE) if any(arm.endswith(f"+{name}") for arm in arms))
    return Lineup(tuple(f"fr-spec:{one}" for one in rows), f"vocabtrim:{rows[0]}", learned)
