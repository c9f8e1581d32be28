"""When the aligner trains: traces pay for steps; drift pays more, candidates in vain less."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from evospec.align.cadence import Cadence
from evospec.align.drift import DriftDetector
from evospec.align.trace import Trace
from tests.unit.align_tiny import learnable_trace, random_trace, tiny_config, tiny_trainer

TRACE = random_trace(0)


def accepting(share: float, seed: int = 0) -> Trace:
    """One draft a position, whose token is accepted in `share` of them."""
    width = TRACE.width
    return replace(
        TRACE,
        draft_position=np.zeros(width, dtype=np.int8),
        accepted=np.random.default_rng(seed).permutation(width) < share * width,
        generated=np.ones(width, dtype=bool),
    )


def observed(detector: DriftDetector, share: float, traces: int) -> DriftDetector:
    for number in range(traces):
        detector.observe(accepting(share, number))
    return detector


def test_drift_is_seen_soon_after_acceptance_falls_and_ends_once_it_is_usual() -> None:
    detector = observed(DriftDetector(4, 40, 0.1), 0.5, 60)
    assert not detector.drifted
    assert detector.short == pytest.approx(detector.long)
    observed(detector, 0.25, 4)
    assert detector.drifted
    observed(detector, 0.25, 200)
    assert not detector.drifted


def test_acceptance_that_rises_is_no_drift() -> None:
    assert not observed(observed(DriftDetector(4, 40, 0.1), 0.25, 60), 0.75, 10).drifted


@given(st.lists(st.floats(0, 1), min_size=1, max_size=7))
def test_few_traces_never_drift(shares: list[float]) -> None:
    detector = DriftDetector(4, 40, 0.01)
    for share in shares:
        observed(detector, share, 1)
    assert not detector.drifted


def test_traces_without_drafts_say_nothing() -> None:
    detector = DriftDetector(1, 2, 0.1)
    for _ in range(5):
        detector.observe(replace(TRACE, draft_position=np.full(TRACE.width, -1, dtype=np.int8)))
    assert (detector.short, detector.long, detector.drifted) == (0.0, 0.0, False)


def credit(cadence: Cadence, traces: int) -> int:
    """Steps that so many admitted traces pay for."""
    for _ in range(traces):
        cadence.admitted()
    steps = 0
    while cadence.earned:
        cadence.stepped()
        steps += 1
    return steps


@pytest.mark.parametrize("kind", ["steady", "adaptive"])
def test_traces_pay_for_steps(kind: str) -> None:
    cadence = Cadence(tiny_config(cadence=kind, steps_per_trace=0.5))
    assert not cadence.earned
    assert credit(cadence, 20) == 10


def test_adaptive_is_eager_in_a_drift_and_slow_in_vain() -> None:
    settings = {"steps_per_trace": 0.5, "drift_short": 4, "drift_long": 40, "drift_boost": 4.0}
    cadence = Cadence(tiny_config(cadence="adaptive", idle_share=0.2, **settings))
    steady = Cadence(tiny_config(cadence="steady", **settings))
    for each in (cadence, steady):
        for better in (True, False, False):
            each.judged(better=better)
    assert (credit(cadence, 100), credit(steady, 100)) == (10, 50)
    for each in (cadence, steady):
        observed(each.drift, 0.9, 50)
        observed(each.drift, 0.1, 6)
    assert (credit(cadence, 10), credit(steady, 10)) == (20, 5)
    cadence.judged(better=True)
    observed(cadence.drift, 0.1, 300)
    assert credit(cadence, 10) == 5


def test_a_trainer_is_due_as_long_as_its_traces_pay() -> None:
    trainer = tiny_trainer(steps_per_trace=0.25)
    assert not trainer.due
    for seed in range(16):
        trainer.add(learnable_trace(seed))
    steps = 0
    while trainer.due:
        trainer.step()
        steps += 1
    assert steps == 4


def test_averages_must_differ() -> None:
    with pytest.raises(ValueError, match=r"drift_long \(4\) must be above drift_short \(4\)"):
        tiny_config(drift_short=4, drift_long=4)
