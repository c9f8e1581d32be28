from __future__ import annotations

from actors.breaker import CircuitBreaker


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_opens_after_consecutive_failures_only() -> None:
    breaker = CircuitBreaker(threshold=3, clock=Clock())
    for _ in range(2):
        breaker.failure()
    breaker.success()
    for _ in range(2):
        breaker.failure()
    assert breaker.allows
    breaker.failure()
    assert not breaker.allows
    assert breaker.opened == 1


def test_pauses_double_up_to_the_limit_and_end_with_a_success() -> None:
    clock = Clock()
    breaker = CircuitBreaker(threshold=1, pause_s=1.0, max_pause_s=4.0, clock=clock)
    for pause in (1.0, 2.0, 4.0, 4.0):
        breaker.failure()
        clock.now += pause * 0.99
        assert not breaker.allows
        clock.now += pause * 0.02
        assert breaker.allows
    breaker.success()
    breaker.failure()
    clock.now += 1.01
    assert breaker.allows
