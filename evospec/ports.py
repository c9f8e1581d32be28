"""The seams of the system: what the library and the actors need from the outside world.

Nothing here names Redis, Qdrant or Ray. `services/` implements these protocols and
hands instances (or picklable factories) inwards.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np

from evospec.wire import (
    Decision,
    IndexPoint,
    Manifest,
    Rollout,
    RolloutEvent,
    TokenHits,
    VersionedWeights,
)

# A replica that has not acknowledged its version for so long is taken to be gone.
ACKNOWLEDGED_FOR_S = 90


class WeightRegistry(Protocol):
    """Versioned adapter weights, shared by all replicas.

    What `rollout` says is the truth; `wait` only hints. All methods may raise
    `RegistryError`; callers keep the version at hand and try again.
    """

    def acquire_epoch(self) -> int:
        """Returns a publisher epoch greater than any before it; older ones can publish no more."""
        ...

    def rollout(self) -> Rollout:
        """Which version each replica should run, read in one step."""
        ...

    def newest_version(self) -> int:
        """Highest version ever published, revoked or not; 0 when nothing was."""
        ...

    def fetch(self, version: int) -> VersionedWeights:
        """Manifest and bytes of a version, with length, hash and signature verified.

        Raises:
            VersionMissingError: it was trimmed, or its bytes are lost.
            WireError: what is stored is not that version, intact and signed as configured.
        """
        ...

    def fetch_training_state(self, version: int) -> bytes | None:
        """What the aligner stored beside a version to go on from it; None when there is nothing.

        Raises:
            WireError: what is stored is not what was published, or too large.
        """
        ...

    def publish(self, manifest: Manifest, blob: bytes, training_state: bytes | None = None) -> None:
        """Stores manifest, blob and training state, then announces the version, in one atomic step.

        A manifest whose state is `candidate` waits for its canary, a `stable` one is for all at once.

        Raises:
            StalePublisherError: version or epoch did not grow.
            DecisionRefusedError: another candidate is being tried, or this content is quarantined.
        """
        ...

    def decide(self, decision: Decision) -> None:
        """Carries out a decision and writes it to the audit trail, in one atomic step.

        Raises:
            DecisionRefusedError: it does not fit what the registry holds now.
        """
        ...

    def events(self, limit: int = 100) -> list[RolloutEvent]:
        """The latest entries of the audit trail, oldest first."""
        ...

    def acknowledge(self, replica: str, version: int) -> None:
        """Records that `replica` decodes with `version`, for `ACKNOWLEDGED_FOR_S` seconds from now."""
        ...

    def acknowledgements(self) -> dict[str, int]:
        """Version last acknowledged by each replica; those that fell silent are left out."""
        ...

    def wait(self, timeout_s: float) -> bool:
        """Blocks until a hint that the rollout changed, or the timeout; True on a hint."""
        ...

    def close(self) -> None: ...


class TokenIndex(Protocol):
    """Long-tail tokens by context: nearest points' token ids and weights.

    Methods block; callers run them off the decoding thread, under a deadline.
    All may raise `TokenIndexError`.
    """

    def search(self, vectors: np.ndarray, tenant: str, limit: int) -> list[TokenHits]:
        """Nearest points of `tenant` for each row of `vectors` [queries, dim] (float32)."""
        ...

    def write(self, points: Sequence[IndexPoint]) -> None: ...

    def count(self) -> int: ...

    def latest(self, limit: int) -> list[IndexPoint]:
        """Up to `limit` points of all tenants, those written last, newest first: for operators to look at."""
        ...

    def close(self) -> None: ...


# Stores hold sockets, which do not pickle: actors receive a factory and open their own.
RegistryFactory = Callable[[], WeightRegistry]
TokenIndexFactory = Callable[[], TokenIndex]
