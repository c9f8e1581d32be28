"""Who decodes, who prefills, who waits. Slots stay dense: running requests hold 0..n-1."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

from evospec.engine.state import RequestState


@dataclass(frozen=True, slots=True)
class SlotMove:
    """A request's caches must be copied from one slot to another."""

    source: int
    target: int
    state: RequestState


@dataclass(slots=True)
class Scheduler:
    """First come, first served; one request prefills at a time, in the slot after the running ones."""

    max_batch: int
    running: list[RequestState] = field(default_factory=list)
    prefilling: RequestState | None = None
    waiting: deque[RequestState] = field(default_factory=deque)
    _by_id: dict[str, RequestState] = field(default_factory=dict)

    def find(self, request_id: str) -> RequestState | None:
        """The request of this id that has not ended."""
        state = self._by_id.get(request_id)
        return None if state is None or state.finish is not None else state

    def enqueue(self, state: RequestState) -> None:
        self._by_id[state.request.id] = state
        self.waiting.append(state)

    @property
    def can_prefill(self) -> bool:
        """Whether there is a prompt to process, and a slot for it."""
        return self.prefilling is not None or (bool(self.waiting) and len(self.running) < self.max_batch)

    @property
    def startable(self) -> int:
        """Requests in the queue that there are free slots for."""
        taken = len(self.running) + (self.prefilling is not None)
        return min(len(self.waiting), self.max_batch - taken)

    def start_prefill(self) -> RequestState | None:
        """The request to prefill now, if there is one."""
        if self.prefilling is None and self.can_prefill:
            self.prefilling = self.waiting.popleft()
            self.prefilling.slot = len(self.running)
        return self.prefilling

    def start_running(self, state: RequestState) -> None:
        """Moves the prefilled request into the batch; its slot is already the next one."""
        self.running.append(state)
        self.prefilling = None

    @property
    def has_dropped(self) -> bool:
        """Whether a request was cancelled before it ran."""
        queued = self.waiting if self.prefilling is None else (*self.waiting, self.prefilling)
        return any(state.cancelled for state in queued)

    def drop_cancelled(self) -> list[RequestState]:
        """Ends cancelled requests and returns them; running ones keep their slot until `retire`."""
        gone = [state for state in self.waiting if state.cancelled]
        for state in gone:
            self.waiting.remove(state)
        if self.prefilling is not None and self.prefilling.cancelled:
            gone.append(self.prefilling)
            self.prefilling = None
        for state in gone:
            del self._by_id[state.request.id]
        gone += [state for state in self.running if state.cancelled and state.finish is None]
        for state in gone:
            state.finish = "cancelled"
        return gone

    def retire(self) -> list[SlotMove]:
        """Removes finished requests and closes the gaps they leave.

        Returns:
            Cache copies to make, in order.
        """
        kept = sum(state.finish is None for state in self.running)
        # One move for each: what a slot on the way held may be the beginning of another prompt.
        homeless = [state for state in self.running[kept:] if state.finish is None]
        moves: list[SlotMove] = []
        for index, state in enumerate(self.running):
            if state.finish is None:
                continue
            if self._by_id.get(state.request.id) is state:  # the id may be back already
                del self._by_id[state.request.id]
            if index < kept:
                last = homeless.pop()
                moves.append(SlotMove(last.slot, index, last))
                last.slot = index
                self.running[index] = last
        del self.running[kept:]
        if self.prefilling is not None and self.prefilling.slot != len(self.running):
            moves.append(SlotMove(self.prefilling.slot, len(self.running), self.prefilling))
            self.prefilling.slot = len(self.running)
        return moves

    @property
    def has_work(self) -> bool:
        return bool(self.running or self.waiting or self.prefilling)
