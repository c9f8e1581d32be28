"""Prompts of waiting requests, as much as one chunk of them at a time."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from evospec.engine.host_copy import Fetched, fetch
from evospec.engine.learning import Learning
from evospec.engine.observer import Observer
from evospec.engine.passes import Prompted
from evospec.engine.prefix import PrefixIndex
from evospec.engine.runner import Runner
from evospec.engine.scheduler import Scheduler
from evospec.engine.state import RequestState
from evospec.engine.stats import EngineStats

_SHORTEST = 64  # prompt tokens that take as long as fewer


@dataclass(frozen=True, slots=True)
class Begun:
    """A request whose prompt is on its way through the device, whole.

    Attributes:
        features: what traces record of the prompt's last position [1, 1, taps * hidden]; None when it isn't
            traced.
    """

    state: RequestState
    prompted: Prompted
    features: Fetched | None


class Prompting:
    """Takes requests from the queue, and lets them run once their prompts are launched.

    All prompts of a chunk are launched before the first token of any is waited for: many short ones would
    else take as long as the host and the device need one after the other.

    Args:
        chunk: prompt tokens processed at once.
    """

    __slots__ = ("_chunk", "_learning", "_observer", "_prefixes", "_runner", "_scheduler", "_stats")

    def __init__(
        self,
        runner: Runner,
        scheduler: Scheduler,
        observer: Observer,
        learning: Learning,
        stats: EngineStats,
        chunk: int,
    ) -> None:
        self._runner = runner
        self._scheduler = scheduler
        self._observer = observer
        self._learning = learning
        self._stats = stats
        self._chunk = chunk
        self._prefixes = PrefixIndex(scheduler.max_batch)

    def launch(self, active: Tensor | None) -> list[Begun]:
        """Processes prompts for as many tokens as one chunk has: several when they are short.

        Args:
            active: see `HeadView`.

        Returns:
            The requests whose prompts are complete with it.
        """
        begun: list[Begun] = []
        room = self._chunk
        while room > 0 and (state := self._scheduler.start_prefill()) is not None:
            before = state.prefilled
            launched = self._launch(state, active)
            if launched is not None:
                begun.append(launched)
            room -= max(state.prefilled - before, _SHORTEST)
        return begun

    def retire(self) -> None:
        """Frees the slots of requests that have ended, and closes the gaps they leave."""
        running, slots = self._scheduler.running, self._runner.slots
        before = len(running)
        for state in running:
            if state.finish is not None:
                self._prefixes.record(state)
        for move in self._scheduler.retire():
            slots.move(move)
            self._prefixes.move(move)
        if len(running) < before:
            slots.park(len(running), before)

    def _launch(self, state: RequestState, active: Tensor | None) -> Begun | None:
        """Processes the next chunk of a prompt; None while more of it is to come."""
        if state.prefilled == 0:
            if self._observer.still_learns(state.request.id):
                self._learning.catch_up()
            self._observer.admit(state)
            self._reuse_prefix(state)
        before = state.prefilled
        prompted = self._runner.prefill(state, active, self._observer.wanted)
        self._stats.prompt_tokens += state.prefilled - before
        if prompted is None:
            return None
        self._scheduler.start_running(state)
        self._observer.prompt(state, prompted, behind=self._scheduler.startable)
        features = None
        if prompted.features is not None and self._observer.records([state]):
            features = fetch(prompted.features[None, -1:])
        return Begun(state, prompted, features)

    def _reuse_prefix(self, state: RequestState) -> None:
        """Begins a prompt where an earlier one of the same tenant had the same tokens."""
        prefix = None
        if self._runner.reuses_prefix(state):
            request, running = state.request, self._scheduler.running
            prefix = self._prefixes.find(request.tenant, request.prompt_ids, running)
        self._prefixes.forget(state.slot)
        if prefix is None:
            return
        # The drafter's pair at the last common position holds the token after it: it is made anew.
        state.prefilled = prefix.length - 1
        self._runner.slots.copy(prefix.slot, state.slot, state.prefilled)
        self._stats.reused_prompt_tokens += state.prefilled
