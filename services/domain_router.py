"""Ray Serve request router that prefers the replica whose vocabulary and cache suit a prompt."""

from __future__ import annotations

import random
from typing import Any

from ray.serve.request_router import PendingRequest, ReplicaID, RequestRouter, RunningReplica

from actors.generation import GenerationRequest
from services.affinity import Affinity, Prompt, suited

CLASS = "services.domain_router:DomainRouter"
MOST_COMPARED = 16  # replicas scored for a request; of more, a random choice


class DomainRouter(RequestRouter):
    """The replica that suits, as long as it is not much busier than others; else the less busy of two.

    Routes each request itself, in no order beside that in which they came: Serve's mixin for strict order
    would give a request the replica that was chosen for another one.
    """

    def initialize_state(self, **settings: Any) -> None:
        """Called by Serve.

        Args:
            slack: requests that the replica may have more than the least busy one.
        """
        self._slack: int = settings["slack"]
        self._affinity = Affinity()

    async def choose_replicas(
        self, candidate_replicas: list[RunningReplica], pending_request: PendingRequest | None = None
    ) -> list[list[RunningReplica]]:
        """Ranks of replicas to try in turn; the less busy of a rank is taken."""
        if not candidate_replicas:
            return []
        two = random.sample(candidate_replicas, min(2, len(candidate_replicas)))
        prompt = None if pending_request is None else _prompt(pending_request)
        if pending_request is not None:
            pending_request.routing_context.should_backoff = True
        if prompt is None or len(candidate_replicas) == 1:
            return [two]
        count = min(MOST_COMPARED, len(candidate_replicas))
        compared = {_name(one): one for one in random.sample(candidate_replicas, count)}
        loads = {name: self._load(one) for name, one in compared.items()}
        best = suited(self._affinity.scores(prompt, compared), loads, self._slack)
        return [two] if best is None else [[compared[best]], two]

    def on_request_routed(self, pending_request: PendingRequest, replica_id: ReplicaID, result: Any) -> None:
        """Called by Serve when a replica has taken a request."""
        prompt = _prompt(pending_request)
        if prompt is not None:
            self._affinity.record(replica_id.unique_id, prompt)

    def update_replicas(self, replicas: list[RunningReplica]) -> None:
        """Called by Serve when replicas come and go."""
        super().update_replicas(replicas)
        self._affinity.keep(_name(replica) for replica in replicas)

    def _load(self, replica: RunningReplica) -> int:
        """Requests of this router under way there, as far as is known."""
        return self.replica_queue_len_cache.get(replica.replica_id) or 0


def _name(replica: RunningReplica) -> str:
    name: str = replica.replica_id.unique_id
    return name


def _prompt(pending: PendingRequest) -> Prompt | None:
    """None of calls that are no generation."""
    request = pending.args[0] if pending.args else None
    return Prompt.of(request.prompt_ids) if isinstance(request, GenerationRequest) else None
