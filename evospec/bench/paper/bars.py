"""What the claim is measured by, and whether a run meets it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from evospec.bench.paper.causes import Cause, cause_of
from evospec.bench.paper.lineup import NANOSPEC, Lineup
from evospec.bench.paper.names import HEADLINE, MEMORY
from evospec.bench.paper.settings import ALIGNED, ONLINE
from evospec.bench.paper.view import PartView, Ratio
from evospec.bench.results import FULL, PLAIN, Results

MEMORY_SHARE = 0.5  # of standard online adaptation
REPEATED = 0.03  # ratios of the same command twice


@dataclass(frozen=True, slots=True)
class SpeedBar:
    """Tokens/s of EvoSpec by another arm's, mean over the headline's domains, batch 1, greedy.

    Attributes:
        against: None: the arm was not run.
        measured: None: not yet, or an arm failed: `failure` says why.
    """

    text: str
    against: str | None
    needed: float
    measured: Ratio | None
    cause: Cause | None
    failure: str | None = None

    @property
    def met(self) -> bool | None:
        """None: not measured."""
        return None if self.measured is None else self.measured.value >= self.needed

    @property
    def short(self) -> float:
        """Share of the bar that is missing; below 0 it is exceeded."""
        return 0.0 if self.measured is None else 1 - self.measured.value / self.needed


def best_static(view: PartView, lineup: Lineup) -> str | None:
    """The static list that is fastest on the very prompts that are reported: the strictest choice."""
    speeds = {arm: view.ratio(arm, PLAIN, view.headline) for arm in lineup.statics if view.has(arm)}
    known = {arm: ratio.value for arm, ratio in speeds.items() if ratio is not None}
    return max(known, key=lambda arm: known[arm], default=None)


def speed_bars(parts: Mapping[str, Results], lineup: Lineup) -> list[SpeedBar]:
    """None of them measured before the headline part is."""
    view = PartView(parts[HEADLINE]) if HEADLINE in parts else None
    best = None if view is None else best_static(view, lineup)
    named = f" ({best})" if best else ""
    asked = (
        (f"FR-Spec ({lineup.reference})", lineup.reference, 1.25),
        (f"the best static list{named}", best, 1.15),
        ("NanoSpec", NANOSPEC, 1.10),
        ("EAGLE-3 with the full vocabulary", FULL, 1.6),
        ("plain decoding of our engine", PLAIN, 2.0),
    )
    return [_bar(view, lineup.both, *bar) for bar in asked]


def memory_share(parts: Mapping[str, Results]) -> float | None:
    """Peak of EvoSpec's adapting by that of standard online adaptation; None: not measured."""
    if MEMORY not in parts:
        return None
    texts = learner_arms(parts[MEMORY])
    peaks = {costs.arm: costs.peak_mb for costs in parts[MEMORY].updates}
    own, standard = (peaks.get(texts.get(name, "")) for name in (ALIGNED, ONLINE))
    return None if not own or not standard else own / standard


def learner_arms(part: Results) -> dict[str, str]:
    """Ways to adapt as they were written, by their names."""
    paper = part.settings.get("paper")
    listed = paper.get("learners") if isinstance(paper, dict) else None
    pairs = [str(one).partition("=")[::2] for one in listed] if isinstance(listed, list) else []
    return dict(pairs)


def exact(parts: Mapping[str, Results]) -> list[str]:
    """Failed arms, with their part and the reason: no output may differ from the target's."""
    found: dict[tuple[str, str], str] = {}
    for name, part in parts.items():
        for run in part.failures:
            found.setdefault((name, run.name), run.failure or "failed")
    return [f"{arm} in {name}: {reason}" for (name, arm), reason in found.items()]


def _bar(view: PartView | None, own: str, text: str, against: str | None, needed: float) -> SpeedBar:
    if view is None or against is None or not view.has(own, against):
        return SpeedBar(text, against, needed, None, None, "not measured yet")
    failure = view.failed(own) or view.failed(against)
    return SpeedBar(
        text,
        against,
        needed,
        view.ratio(own, against, view.headline),
        cause_of(view, own, against, view.headline),
        failure,
    )
