"""Rules of the rollout on real servers: what each decision does, and what is refused and why."""

from __future__ import annotations

import pytest
from redis import Redis

from evospec.errors import DecisionRefusedError
from evospec.wire import DecisionKind, Rollout
from services.registry import RedisWeightRegistry
from tests.integration.registry_kit import (
    contents,
    decide,
    one_line,
    publish,
    states,
)

# --- what decisions do ------------------------------------------------------------------------


def test_a_candidate_waits_is_tried_and_becomes_stable(registry: RedisWeightRegistry) -> None:
    publish(registry, 1)
    publish(registry, 2, state="candidate")
    assert registry.rollout() == Rollout(serial=2, stable=1, candidate=2)
    assert registry.rollout().wanted("a") == 1
    decide(registry, "canary", 2, "b", "a", "b")
    assert registry.rollout() == Rollout(3, 1, 2, frozenset({"a", "b"}))
    assert states(registry) == {1: "stable", 2: "canary"}
    assert registry.fetch(2).manifest.state == "canary"
    decide(registry, "canary", 2, 'é "quoted"')  # replica a died, say
    assert registry.rollout() == Rollout(4, 1, 2, frozenset({'é "quoted"'}))
    decide(registry, "promote", 2)
    assert registry.rollout() == Rollout(serial=5, stable=2)
    assert states(registry) == {1: "stable", 2: "stable"}
    assert registry.newest_version() == 2


def test_a_candidate_may_be_promoted_without_a_canary(registry: RedisWeightRegistry) -> None:
    publish(registry, 1, state="candidate")
    decide(registry, "promote", 1)
    assert registry.rollout() == Rollout(serial=2, stable=1)


def test_a_revoked_candidate_leaves_the_stable_version(tried: RedisWeightRegistry) -> None:
    decide(tried, "revoke", 3)
    assert tried.rollout() == Rollout(serial=5, stable=2)
    assert states(tried) == {1: "stable", 2: "stable", 3: "revoked"}
    assert tried.newest_version() == 3  # its number is used up
    publish(tried, 4, state="candidate")
    assert tried.rollout().candidate == 4


def test_a_revoked_stable_version_falls_back_to_the_one_before(tried: RedisWeightRegistry) -> None:
    decide(tried, "revoke", 2)
    assert tried.rollout() == Rollout(5, 1, 3, frozenset("a"))  # what is tried goes on
    decide(tried, "revoke", 1)
    assert tried.rollout() == Rollout(6, 0, 3, frozenset("a"))
    decide(tried, "promote", 3)
    decide(tried, "revoke", 3)
    assert tried.rollout() == Rollout(serial=8)
    assert set(states(tried).values()) == {"revoked"}


def test_a_fall_back_skips_what_never_was_stable_or_is_gone(
    registry: RedisWeightRegistry, raw: Redis
) -> None:
    publish(registry, 1)
    publish(registry, 2)
    publish(registry, 3, state="candidate")
    decide(registry, "revoke", 3)
    publish(registry, 4)
    raw.delete("test:w:2")
    decide(registry, "revoke", 4)
    assert registry.rollout().stable == 0  # version 1 was trimmed, three are kept


def test_an_older_version_may_be_revoked_without_a_change_for_replicas(tried: RedisWeightRegistry) -> None:
    decide(tried, "revoke", 1)
    assert tried.rollout() == Rollout(5, 2, 3, frozenset("a"))
    assert states(tried)[1] == "revoked"
    with pytest.raises(DecisionRefusedError, match="it was revoked"):
        decide(tried, "rollback", 1)


def test_rollback_revokes_every_later_version(tried: RedisWeightRegistry) -> None:
    decide(tried, "rollback", 1)
    assert tried.rollout() == Rollout(serial=5, stable=1)
    assert states(tried) == {1: "stable", 2: "revoked", 3: "revoked"}


@pytest.mark.parametrize("stable", [True, False])
def test_rollback_to_the_base_is_always_possible(stable: bool, registry: RedisWeightRegistry) -> None:
    decide(registry, "rollback", 0)  # there is nothing yet: it holds
    assert registry.rollout() == Rollout()
    publish(registry, 1, state="stable" if stable else "candidate")
    decide(registry, "rollback", 0)
    assert registry.rollout() == Rollout(serial=2)
    assert states(registry) == {1: "revoked"}
    publish(registry, 2)
    assert registry.rollout() == Rollout(serial=3, stable=2)


def test_a_stable_version_overtakes_a_candidate(tried: RedisWeightRegistry) -> None:
    publish(tried, 4)
    assert tried.rollout() == Rollout(serial=5, stable=4)
    assert states(tried) == {2: "stable", 3: "candidate", 4: "stable"}  # not a bad one: it was not judged
    with pytest.raises(DecisionRefusedError, match="only the candidate can be tried"):
        decide(tried, "canary", 3, "a")
    with pytest.raises(DecisionRefusedError, match="older than the stable version; roll back to 3"):
        decide(tried, "promote", 3)
    decide(tried, "revoke", 4)
    assert tried.rollout().stable == 2
    decide(tried, "promote", 3)
    assert tried.rollout() == Rollout(serial=7, stable=3)


def test_a_promotion_leaves_a_later_candidate_waiting(tried: RedisWeightRegistry) -> None:
    publish(tried, 4)
    decide(tried, "revoke", 4)
    publish(tried, 5, state="candidate")
    decide(tried, "promote", 3)
    assert tried.rollout() == Rollout(serial=8, stable=3, candidate=5)


# --- what is refused --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "version", "reason"),
    [
        ("canary", 0, "version 0 is the base"),
        ("canary", 2, "only the candidate can be tried"),
        ("canary", 9, "it is not kept"),
        ("promote", 0, "version 0 is the base"),
        ("promote", 1, "it is older than the stable version; roll back to 1 instead"),
        ("promote", 9, "it is not kept"),
        ("revoke", 0, "version 0 is the base"),
        ("revoke", 9, "it is not kept"),
        ("rollback", 2, "it is stable already; revoke the candidate"),
        ("rollback", 3, "it is newer than the stable version; promote 3 instead"),
        ("rollback", 9, "it is not kept"),
    ],
)
def test_refusals_name_what_is_held_and_what_to_do(
    kind: DecisionKind, version: int, reason: str, tried: RedisWeightRegistry, raw: Redis
) -> None:
    before = contents(raw)
    with pytest.raises(DecisionRefusedError, match=reason) as caught:
        decide(tried, kind, version, "b")
    text = one_line(caught.value)
    assert text.startswith("cannot ")
    assert f"version {version}" in text
    assert "stable is version 2, candidate version 3, kept are 1, 2, 3" in text
    assert contents(raw) == before


def test_a_canary_needs_replicas(tried: RedisWeightRegistry) -> None:
    with pytest.raises(DecisionRefusedError, match="no replica is named"):
        decide(tried, "canary", 3)
    assert tried.rollout().canary == {"a"}


@pytest.mark.parametrize("kind", ["canary", "promote", "rollback"])
def test_what_was_revoked_stays_revoked(kind: DecisionKind, tried: RedisWeightRegistry) -> None:
    decide(tried, "revoke", 3)
    with pytest.raises(DecisionRefusedError, match="it was revoked and stays so"):
        decide(tried, kind, 3, "a")


@pytest.mark.parametrize("kind", ["canary", "promote"])
def test_a_version_whose_blob_is_gone_can_only_be_revoked(
    kind: DecisionKind, tried: RedisWeightRegistry, raw: Redis
) -> None:
    raw.delete("test:w:3")
    with pytest.raises(DecisionRefusedError, match="its weights are gone"):
        decide(tried, kind, 3, "b")
    decide(tried, "revoke", 3)
    assert tried.rollout().candidate == 0


def test_a_candidate_that_is_gone_altogether_can_be_revoked(tried: RedisWeightRegistry, raw: Redis) -> None:
    raw.delete("test:w:3", "test:m:3")
    decide(tried, "revoke", 3)
    assert tried.rollout() == Rollout(serial=5, stable=2)
    assert states(tried) == {1: "stable", 2: "stable"}


def test_a_rollback_ends_a_candidate_that_is_gone_altogether(
    registry: RedisWeightRegistry, raw: Redis
) -> None:
    publish(registry, 1, state="candidate")
    raw.delete("test:w:1", "test:m:1")
    decide(registry, "rollback", 0)
    assert registry.rollout() == Rollout(serial=2)


def test_the_stable_version_is_not_rolled_back_to(registry: RedisWeightRegistry) -> None:
    """One that was overtaken is later and could still be promoted: so this is not what holds already."""
    publish(registry, 1)
    publish(registry, 2, state="candidate")
    publish(registry, 3)
    decide(registry, "revoke", 3)
    with pytest.raises(DecisionRefusedError, match="it is stable already"):
        decide(registry, "rollback", 1)
    decide(registry, "revoke", 2)
    decide(registry, "rollback", 1)
    assert registry.rollout() == Rollout(serial=5, stable=1)


def test_a_second_candidate_waits_for_the_first(tried: RedisWeightRegistry, raw: Redis) -> None:
    with pytest.raises(
        DecisionRefusedError, match="version 3 is being tried; promote or revoke it"
    ) as caught:
        publish(tried, 4, state="candidate")
    one_line(caught.value)
    assert tried.newest_version() == 3
    assert not raw.keys("test:staged:*")
    decide(tried, "promote", 3)
    publish(tried, 4, state="candidate")
    assert tried.rollout().candidate == 4
