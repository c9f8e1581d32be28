"""Learning takes the time that the host has to spare."""

from __future__ import annotations

import pytest

from evospec.engine.spare_time import SpareTime


def test_it_grows_by_what_the_host_waits_and_shrinks_when_it_is_late() -> None:
    spare = SpareTime()
    spare.waited(0.010, late=False)
    assert spare.seconds == pytest.approx(0.008)
    spare.used(0.004)
    spare.waited(0.002, late=False)
    assert spare.seconds == pytest.approx(0.008)  # less was made of it than there is
    spare.used(0.008)
    spare.waited(0.0, late=True)
    assert spare.seconds == pytest.approx(0.0056)
    spare.used(0.006)
    spare.waited(0.001, late=False)
    assert spare.seconds == pytest.approx(0.0068)
