"""Answers of the registry's scripts, and what to tell the one who asked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from evospec.errors import DecisionRefusedError, RegistryError, StalePublisherError
from evospec.wire import Decision, Manifest
from services.registry_contents import read_number, text_of

DONE = "done"


@dataclass(frozen=True, slots=True)
class Answer:
    """What came of a script and what the registry holds after it.

    `outcome` is `done` or names the rule that refused it; `stable` and `candidate` are 0 for
    the base and for none.
    """

    outcome: str
    stable: int
    candidate: int
    newest: int
    epoch: int
    kept: tuple[int, ...]

    @classmethod
    def read(cls, address: str, reply: Sequence[Any]) -> Answer:
        """Raises RegistryError where a key of the registry holds what is no number."""
        outcome, *numbers, kept = reply
        stable, candidate, newest, epoch = (read_number(address, "a rollout", raw) for raw in numbers)
        versions = tuple(read_number(address, "a version", raw) for raw in kept)
        return cls(text_of(outcome), stable, candidate, newest, epoch, versions)

    def __str__(self) -> str:
        stable = f"version {self.stable}" if self.stable else "the base"
        candidate = f"version {self.candidate}" if self.candidate else "none"
        kept = ", ".join(map(str, self.kept)) or "none"
        return f"stable is {stable}, candidate {candidate}, kept are {kept}"


def verb(decision: Decision) -> str:
    """What is decided, to follow "cannot"."""
    match decision.kind:
        case "canary":
            return f"try version {decision.version} on a canary"
        case "rollback":
            return f"roll back to version {decision.version}"
    return f"{decision.kind} version {decision.version}"


def refused_publication(manifest: Manifest, answer: Answer, address: str) -> RegistryError:
    """The error for a publication that was not done."""
    what = f"version {manifest.version} of epoch {manifest.epoch} was refused by {address}"
    match answer.outcome:
        case "stale":
            return StalePublisherError(
                f"{what}, which is at version {answer.newest}, epoch {answer.epoch}: another publisher took "
                "over; acquire an epoch and go on from the newest version"
            )
        case "pending":
            return DecisionRefusedError(
                f"{what}: version {answer.candidate} is being tried; promote or revoke it first"
            )
        case "quarantined":
            return DecisionRefusedError(
                f"{what}: these weights (SHA-256 {manifest.sha256[:16]}…) were revoked before; publish others"
            )
        case "expired":
            return RegistryError(f"{what}: its bytes vanished before it could be announced; publish again")
    return _unknown(answer, address)


def refused_decision(decision: Decision, answer: Answer, address: str) -> RegistryError:
    """The error for a decision that was not carried out."""
    reason = _reason(decision, answer)
    if reason is None:
        return _unknown(answer, address)
    return DecisionRefusedError(
        f"cannot {verb(decision)}: {reason} ({address}: {answer})",
    )


def names_no_replica(decision: Decision) -> DecisionRefusedError:
    return DecisionRefusedError(f"cannot {verb(decision)}: no replica is named; name at least one")


def _reason(decision: Decision, answer: Answer) -> str | None:
    """Which rule of `evospec.wire.Decision` it breaks, and what can be done instead."""
    version = decision.version
    match answer.outcome:
        case "base":
            return "version 0 is the base, which can only be rolled back to"
        case "missing":
            return "it is not kept, or its weights are gone; choose a version that is kept"
        case "revoked":
            return "it was revoked and stays so; publish a new version"
        case "not the candidate":
            return "only the candidate can be tried; choose it, or publish the version as one"
        case "older":
            return f"it is older than the stable version; roll back to {version} instead"
        case "stable already":
            return "it is stable already; revoke the candidate or a later version instead"
        case "newer":
            return f"it is newer than the stable version; promote {version} instead"
    return None


def _unknown(answer: Answer, address: str) -> RegistryError:
    return RegistryError(
        f"{address} answered {answer.outcome!r}: another release of EvoSpec is at work there"
    )
