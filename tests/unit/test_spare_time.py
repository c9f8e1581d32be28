"""Learning takes the time that the host has to spare."""

from __future__ import annotations

import math

import pytest

from evospec.engine.spare_time import SpareTime


def test_nothing_is_counted_until_the_device_had_to_wait() -> None:
    spare = SpareTime()
    spare.took(10.0)
    spare.waited(0.0, late=False)
    assert spare.seconds == math.inf


def test_a_cycle_spares_what_the_last_one_did() -> None:
    spare = SpareTime()
    spare.waited(0.0, late=True)
    assert spare.seconds == 0.0
    spare.waited(0.002, late=False)
    spare.took(0.003)
    assert spare.seconds == pytest.approx(-0.001)
    spare.waited(0.0005, late=False)  # all that was taken held nothing up
    assert spare.seconds == pytest.approx(0.0035)
    spare.took(0.003)
    spare.waited(0.004, late=True)
    assert spare.seconds == 0.0
    spare.waited(0.001, late=False)
    assert spare.seconds == pytest.approx(0.001)  # nothing is saved up
