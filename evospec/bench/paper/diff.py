"""The same command twice: how far its ratios are apart."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from evospec.bench.arms import TRANSFORMERS
from evospec.bench.paper.names import LEARN, MEMORY, TIMING
from evospec.bench.paper.view import PartView
from evospec.bench.results import PLAIN, Results


@dataclass(frozen=True, slots=True)
class Difference:
    """tokens/s of an arm by those of the first FR-Spec arm, mean over the headline's domains, in two runs."""

    part: str
    arm: str
    first: float
    second: float

    @property
    def change(self) -> float:
        return self.second / self.first - 1


def compare(first: Mapping[str, Results], second: Mapping[str, Results]) -> list[Difference]:
    """Of all arms of our engine that both measured in a part; ratios are to the part's FR-Spec arm."""
    found = []
    for name in first:
        if name not in second or name in (LEARN, MEMORY) or name.startswith(TIMING):
            continue
        one, other = PartView(first[name]), PartView(second[name])
        reference = next((arm for arm in one.arms if arm.startswith("fr-spec:")), PLAIN)
        for arm in one.arms:
            if arm in (reference,) or arm.startswith(TRANSFORMERS) or not other.has(arm, reference):
                continue
            ratios = [view.ratio(arm, reference, view.headline) for view in (one, other)]
            if ratios[0] is not None and ratios[1] is not None:
                found.append(Difference(name, arm, ratios[0].value, ratios[1].value))
    return found
