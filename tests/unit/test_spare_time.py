"""Learning takes the time that the host has to spare."""

from __future__ import annotations

import math

import pytest

from evospec.engine.spare_time import SpareTime


def test_it_grows_by_what_the_host_waits_and_shrinks_when_it_is_late() -> None:
    spare = SpareTime()
    spare.used(0.010)
    spare.waited(0.002, late=False)
    assert spare.seconds == math.inf
    spare.used(0.010)
    spare.waited(0.0, late=True)
    assert spare.seconds == pytest.approx(0.007)
    spare.used(0.004)
    spare.waited(0.002, late=False)
    assert spare.seconds == pytest.approx(0.007)  # less was made of it than there is
    spare.used(0.006)
    spare.waited(0.005, late=False)
    assert spare.seconds == pytest.approx(0.010)
