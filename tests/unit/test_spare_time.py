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


def test_what_was_waited_for_may_be_taken() -> None:
    spare = SpareTime()
    spare.waited(0.0, late=True)
    assert spare.seconds == 0.0
    spare.waited(0.002, late=False)
    spare.took(0.003)
    assert spare.seconds == pytest.approx(-0.001)
    spare.waited(0.0, late=True)  # a debt stays
    assert spare.seconds == pytest.approx(-0.001)
    for _ in range(10):
        spare.waited(0.004, late=False)
    assert spare.seconds == pytest.approx(0.005)  # not more than that is saved up
