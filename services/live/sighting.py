"""One look at the whole cluster: what each part says of itself at a moment."""

from __future__ import annotations

from dataclasses import dataclass

from actors.aligner import AlignerStatus
from actors.rollout_controller import RolloutStatus
from actors.status import ReplicaStatus


@dataclass(frozen=True, slots=True)
class Sighting:
    """What answered.

    Attributes:
        time_s: seconds since 1970.
        replicas: empty when none answers.
        rollout: None without a canary, or when the controller does not answer.
        aligner: None where alignment is off, or when it does not answer.
    """

    time_s: float
    replicas: tuple[ReplicaStatus, ...] = ()
    rollout: RolloutStatus | None = None
    aligner: AlignerStatus | None = None
