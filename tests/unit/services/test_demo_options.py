"""The demo's configuration: its own rollout settings, unless others were chosen."""

from __future__ import annotations

import pytest

from services.demo.run import MIN_GAIN, ROLLOUT, DemoOptions


def test_canaries_are_short_in_a_demo() -> None:
    config = DemoOptions(replicas=3).config()
    assert config.rollout == ROLLOUT
    assert config.rollout.canary
    assert (config.serve.replicas, config.serve.port) == (3, 0)


def test_rollout_settings_of_the_environment_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EVOSPEC_ROLLOUT__SOAK_S", "3")
    config = DemoOptions().config()
    assert config.rollout.soak_s == 3
    assert config.rollout.min_requests == 8


def test_candidates_need_not_be_better_unless_somebody_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    assert DemoOptions().config().alignment.min_gain == MIN_GAIN < 0
    monkeypatch.setenv("EVOSPEC_ALIGNMENT__MIN_GAIN", "0.01")
    assert DemoOptions().config().alignment.min_gain == 0.01
