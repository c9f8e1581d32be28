"""What operators are told of a decision; that registries decide so is tested with real servers."""

from __future__ import annotations

import pytest

from evospec.errors import DecisionRefusedError
from evospec.wire import Decision, DecisionKind, Rollout, VersionState
from services.rollout_preview import Holdings, Outcome, preview

STATES: dict[int, VersionState] = {9: "stable", 10: "revoked", 11: "stable", 12: "canary"}
NOW = Holdings(Rollout(serial=7, stable=11, candidate=12, canary=frozenset({"b"})), STATES)
RUNNING = {"a": 11, "b": 12, "c": 11}


def outcome(
    kind: DecisionKind,
    version: int,
    *,
    now: Holdings = NOW,
    running: dict[str, int] | None = None,
    dry_run: bool = False,
    lost: int = 0,
) -> Outcome:
    decision = Decision(kind=kind, version=version, by="test")
    after = preview(decision, now, lambda kept: kept != lost, "redis://host")
    return Outcome(decision, now, after, RUNNING if running is None else running, dry_run)


@pytest.mark.parametrize(
    ("kind", "version", "line"),
    [
        ("promote", 12, "version 12 is stable now; 2 replicas will change from 11"),
        ("revoke", 12, "version 12 is revoked, version 11 stays stable; 1 replica will change from 12"),
        ("revoke", 11, "version 11 is revoked, version 9 is stable now; 2 replicas will change from 11"),
        ("revoke", 9, "version 9 is revoked, version 11 stays stable; no replica has to change"),
        (
            "rollback",
            9,
            "versions 11 and 12 are revoked, version 9 is stable now; "
            "3 replicas will change: 2 from 11, 1 from 12",
        ),
        (
            "rollback",
            0,
            "versions 9, 11 and 12 are revoked, the base is stable now; "
            "3 replicas will change: 2 from 11, 1 from 12",
        ),
        ("promote", 11, "nothing to do: version 11 is stable already"),
        ("revoke", 10, "nothing to do: version 10 is revoked already"),
    ],
)
def test_one_line_says_what_happened(kind: DecisionKind, version: int, line: str) -> None:
    assert str(outcome(kind, version)) == line


def test_a_dry_run_says_what_would_happen() -> None:
    assert str(outcome("rollback", 9, dry_run=True)) == (
        "dry run, nothing was changed: versions 11 and 12 would be revoked, version 9 would be stable; "
        "3 replicas would change: 2 from 11, 1 from 12"
    )


def test_replicas_on_the_base_are_called_so() -> None:
    assert str(outcome("promote", 12, running={"a": 0})).endswith("1 replica will change from the base")


def test_revoking_a_stable_version_passes_over_one_whose_bytes_are_gone() -> None:
    assert outcome("revoke", 11, lost=9).after.rollout.stable == 0


def test_the_candidate_is_tried_on_when_the_stable_version_is_revoked() -> None:
    found = outcome("revoke", 11)
    assert found.after.rollout == Rollout(serial=8, stable=9, candidate=12, canary=frozenset({"b"}))
    assert found.moves == {"a": (11, 9), "c": (11, 9)}


def test_a_candidate_that_is_overtaken_waits_no_longer() -> None:
    states: dict[int, VersionState] = {**STATES, 13: "stable"}
    found = outcome("promote", 13, now=Holdings(NOW.rollout, states))
    assert found.after.rollout == Rollout(serial=8, stable=13)
    assert found.after.states[12] == "candidate"


def test_what_programs_read() -> None:
    assert outcome("revoke", 12, dry_run=True).as_dict() == {
        "dry_run": True,
        "changed": True,
        "stable": 11,
        "candidate": 0,
        "revoked": [12],
        "replicas": {"b": {"from": 12, "to": 11}},
    }


@pytest.mark.parametrize(
    ("kind", "version", "reason"),
    [
        ("promote", 0, "version 0 is the base, which can only be rolled back to"),
        ("revoke", 0, "version 0 is the base, which can only be rolled back to"),
        ("promote", 9, "it is older than the stable version; roll back to 9 instead"),
        ("promote", 10, "it was revoked and stays so"),
        ("rollback", 10, "it was revoked and stays so"),
        ("rollback", 11, "it is stable already"),
        ("rollback", 12, "it is newer than the stable version; promote 12 instead"),
        ("promote", 8, "it is not kept, or its weights are gone"),
        ("revoke", 8, "it is not kept, or its weights are gone"),
    ],
)
def test_what_does_not_fit_is_refused(kind: DecisionKind, version: int, reason: str) -> None:
    with pytest.raises(DecisionRefusedError) as refused:
        outcome(kind, version)
    assert reason in str(refused.value)
    assert "stable is version 11, candidate version 12, kept are 9, 10, 11, 12" in str(refused.value)


def test_a_version_whose_bytes_are_gone_is_not_promoted() -> None:
    with pytest.raises(DecisionRefusedError, match="its weights are gone"):
        outcome("promote", 12, lost=12)
