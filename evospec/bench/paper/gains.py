"""SlimSpec's model of what a smaller head brings (2605.10453), held against what was measured."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

from evospec.bench.paper.view import PartView
from evospec.bench.results import FULL, Breakdown, Run

AGREES = 0.05  # of the measured gain
PARTS = {
    "draft_layer_ms": "draft layer",
    "draft_head_ms": "draft head",
    "target_layers_ms": "target layers",
    "target_head_ms": "target head",
    "vocabulary_ms": "vocabulary",
    "host_ms": "host",
}


def modelled_gain(*, rho: float, kappa: float, nu: float) -> float:
    """rho (1 + kappa) / (1 + nu kappa).

    Args:
        rho: share of the acceptance length that is kept.
        kappa: time of the full head by all other time of a cycle.
        nu: time of the new head by that of the full one.
    """
    return rho * (1 + kappa) / (1 + nu * kappa)


@dataclass(frozen=True, slots=True)
class _Terms:
    """Of one domain; see `Gain`."""

    rho: float
    kappa: float
    nu: float
    by_cycles: float
    longer: dict[str, float]


@dataclass(frozen=True, slots=True)
class Gain:
    """One arm against the full vocabulary, means over domains.

    Attributes:
        measured: decode tokens/s by those of the full vocabulary.
        by_cycles: what acceptance lengths and times of whole cycles say of it.
        others: milliseconds that parts besides the draft head take longer, by name.
    """

    arm: str
    rho: float
    kappa: float
    nu: float
    predicted: float
    measured: float
    by_cycles: float
    others: dict[str, float]

    @property
    def gap(self) -> float:
        """Of the prediction, by what was measured."""
        return self.predicted / self.measured - 1

    @property
    def agrees(self) -> bool:
        return abs(self.gap) <= AGREES

    @property
    def between_cycles(self) -> float:
        """What was measured, by what whole cycles say: below 1, time is lost between them."""
        return self.measured / self.by_cycles


def gain_of(view: PartView, arm: str, domains: Sequence[str], full: str = FULL) -> Gain | None:
    """None where something of it was not measured."""
    measured = view.ratio(arm, full, domains, decoding=True)
    pairs = [
        (own, base)
        for domain in domains
        for own in view.runs(arm, [domain])
        for base in view.runs(full, [domain])
    ]
    known = [one for one in (_terms(own, base) for own, base in pairs) if one is not None]
    if measured is None or len(known) < len(domains):
        return None
    others = {
        label: fmean(one.longer[label] for one in known) for label in PARTS.values() if label != "draft head"
    }
    return Gain(
        arm,
        rho=fmean(one.rho for one in known),
        kappa=fmean(one.kappa for one in known),
        nu=fmean(one.nu for one in known),
        predicted=fmean(modelled_gain(rho=one.rho, kappa=one.kappa, nu=one.nu) for one in known),
        measured=measured.value,
        by_cycles=fmean(one.by_cycles for one in known),
        others=others,
    )


def part_of(run: Run, label: str) -> float | None:
    """Milliseconds of a part of a run's cycle; None: it was not broken down."""
    return None if run.breakdown is None else part_ms(run.breakdown, label)


def broken_down_ms(run: Run) -> float | None:
    """A cycle in the pass that broke it down."""
    return None if run.breakdown is None else run.breakdown.cycle_ms


def part_ms(breakdown: Breakdown, label: str) -> float:
    field = next(field for field, known in PARTS.items() if known == label)
    return float(breakdown.model_dump()[field])


def _terms(own: Run, base: Run) -> _Terms | None:
    mine, other = own.breakdown, base.breakdown
    if mine is None or other is None or not other.draft_head_ms:
        return None
    if not own.tokens_per_cycle or not base.tokens_per_cycle or not own.cycle_ms or not base.cycle_ms:
        return None
    rho = own.tokens_per_cycle / base.tokens_per_cycle
    return _Terms(
        rho=rho,
        kappa=other.draft_head_ms / (other.cycle_ms - other.draft_head_ms),
        nu=mine.draft_head_ms / other.draft_head_ms,
        by_cycles=rho * base.cycle_ms / own.cycle_ms,
        longer={label: part_ms(mine, label) - part_ms(other, label) for label in PARTS.values()},
    )
