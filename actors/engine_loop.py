"""One thread that owns a decoding engine: whatever concerns the engine happens between its cycles."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Protocol

from actors.emission import Deliver, Emission
from actors.request_tallies import RequestTallies
from evospec.align.arm import ArmSums
from evospec.align.trace import Trace
from evospec.engine.counters import snapshot
from evospec.engine.request import Request, StepOutput
from evospec.engine.stats import EngineStats
from evospec.errors import EngineFailedError, EvoSpecError
from evospec.models.adapter_slot import StagedAdapter
from evospec.vocab.semantic import Lookup
from evospec.wire import IndexPoint, TokenHits

logger = logging.getLogger(__name__)

STALL_LIMIT_S = 120.0  # one step is milliseconds on a GPU, seconds at worst on a CPU


class DecodingEngine(Protocol):
    """What the loop needs of `evospec.engine.engine.Engine`."""

    @property
    def stats(self) -> EngineStats: ...
    @property
    def has_work(self) -> bool: ...
    def admit(self, request: Request) -> None: ...
    def cancel(self, request_id: str) -> None: ...
    def step(self) -> list[StepOutput]: ...
    def swap_adapter(self, adapter: StagedAdapter) -> None: ...
    def take_traces(self) -> list[Trace]: ...
    def take_lookups(self) -> list[Lookup]: ...
    def take_points(self) -> list[IndexPoint]: ...
    def offer_hits(self, request_id: str, hits: TokenHits) -> None: ...


def _discard(_: object) -> None:
    pass


@dataclass(frozen=True, slots=True)
class Outlets:
    """Where the engine's outboxes go, called on the engine's thread: none may block."""

    traces: Callable[[list[Trace]], None] = _discard
    lookups: Callable[[list[Lookup]], None] = _discard
    points: Callable[[list[IndexPoint]], None] = _discard


@dataclass(frozen=True, slots=True)
class _Command:
    """Something to do between cycles; `reject` is called instead once the engine has failed."""

    run: Callable[[], None]
    reject: Callable[[EvoSpecError], None] = _discard


class EngineLoop:
    """Runs an engine on a thread of its own; all public methods may be called from any thread.

    A step that raises ends the loop: running and later requests get an
    `EngineFailedError`, and `check` raises it too, so that the replica is replaced.
    """

    def __init__(self, engine: DecodingEngine) -> None:
        self._engine = engine
        self._outlets = Outlets()
        self._wake = threading.Condition()
        self._mailbox: deque[_Command] = deque()
        self._running: dict[str, Deliver] = {}
        self._failure: EngineFailedError | None = None
        self._stopping = False
        self._step_started: float | None = None
        self._snapshot = snapshot(engine.stats)
        self._tallies = RequestTallies()
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)

    def start(self, outlets: Outlets) -> None:
        self._outlets = outlets
        self._thread.start()

    def stop(self, timeout_s: float = 10.0) -> None:
        """Ends after the current step; running requests get an EngineFailedError."""
        with self._wake:
            self._stopping = True
            self._wake.notify()
        self._thread.join(timeout_s)

    def admit(self, request: Request, deliver: Deliver) -> None:
        """`deliver` gets the request's emissions, or one error; it is called on the engine's thread."""
        self._post(_Command(lambda: self._admit(request, deliver), deliver))

    def cancel(self, request_id: str) -> None:
        self._post(_Command(lambda: self._cancel(request_id)))

    def swap(self, adapter: StagedAdapter) -> Future[None]:
        """Resolves once the next cycle will draft with `adapter`; EvoSpecError if it was refused.

        Cancelling the future before that leaves the engine as it is.
        """
        done: Future[None] = Future()
        self._post(_Command(lambda: self._swap(adapter, done), lambda failure: _fail(done, failure)))
        return done

    def offer_hits(self, request_id: str, hits: TokenHits) -> None:
        self._post(_Command(lambda: self._engine.offer_hits(request_id, hits)))

    def stats(self) -> EngineStats:
        """Counters as they stood after the latest step."""
        return self._snapshot

    def arms(self) -> dict[int, ArmSums]:
        """What requests came to by adapter version, as of the latest step; not to be changed."""
        return self._tallies.sums()

    def check(self, stall_limit_s: float = STALL_LIMIT_S) -> None:
        """Raises EngineFailedError when the loop has ended or one step takes longer than the limit."""
        if self._failure is not None:
            raise self._failure
        started = self._step_started
        if started is not None and time.monotonic() - started > stall_limit_s:
            raise EngineFailedError(f"the engine has been in one step for more than {stall_limit_s:g} s")

    def _post(self, command: _Command) -> None:
        with self._wake:
            failure = self._failure
            if failure is None:
                self._mailbox.append(command)
                self._wake.notify()
        if failure is not None:
            command.reject(failure)

    def _run(self) -> None:
        try:
            while self._work():
                pass
            self._end(EngineFailedError("the replica is shutting down"))
        except Exception as error:  # the thread's outermost frame: nothing above could report it
            logger.exception("the engine crashed; its running requests are lost")
            self._end(EngineFailedError(f"the engine crashed: {type(error).__name__}: {error}"))

    def _work(self) -> bool:
        """Applies what is in the mailbox, then runs one step; False when the loop shall end."""
        with self._wake:
            while not (self._mailbox or self._stopping or self._engine.has_work):
                self._wake.wait()
            commands = tuple(self._mailbox)
            self._mailbox.clear()
        for command in commands:
            command.run()
        if self._stopping:
            return False
        if self._engine.has_work:
            self._step()
        self._empty_outboxes()
        self._snapshot = snapshot(self._engine.stats)
        return True

    def _step(self) -> None:
        stats = self._engine.stats
        prompts = stats.prefill_seconds
        self._step_started = started = time.monotonic()
        outputs = self._engine.step()
        seconds = time.monotonic() - started - (stats.prefill_seconds - prompts)
        self._tallies.record(outputs, stats.adapter_version, seconds)
        self._dispatch(outputs)
        self._step_started = None

    def _dispatch(self, outputs: list[StepOutput]) -> None:
        stats = self._engine.stats
        for output in outputs:
            emission = Emission(output, stats.adapter_version, stats.vocabulary_epoch)
            self._running[output.request_id](emission)
            if output.finish_reason is not None:
                del self._running[output.request_id]

    def _empty_outboxes(self) -> None:
        if traces := self._engine.take_traces():
            self._outlets.traces(traces)
        if lookups := self._engine.take_lookups():
            self._outlets.lookups(lookups)
        if points := self._engine.take_points():
            self._outlets.points(points)

    def _admit(self, request: Request, deliver: Deliver) -> None:
        try:
            self._engine.admit(request)
        except EvoSpecError as error:
            deliver(error)
        else:
            self._running[request.id] = deliver

    def _cancel(self, request_id: str) -> None:
        if request_id in self._running:  # it may have finished while the cancellation was on its way
            self._engine.cancel(request_id)

    def _swap(self, adapter: StagedAdapter, done: Future[None]) -> None:
        if not done.set_running_or_notify_cancel():
            return
        try:
            self._engine.swap_adapter(adapter)
        except EvoSpecError as error:
            done.set_exception(error)
        except Exception as error:  # it ends the loop; whoever waits for the swap must hear of it too
            done.set_exception(EngineFailedError(f"the engine crashed in a swap: {error}"))
            raise
        else:
            done.set_result(None)

    def _end(self, failure: EngineFailedError) -> None:
        with self._wake:
            self._failure = failure
            commands = tuple(self._mailbox)
            self._mailbox.clear()
        for command in commands:
            command.reject(failure)
        for deliver in self._running.values():
            deliver(failure)
        self._running.clear()
        self._step_started = None


def _fail(done: Future[None], failure: EvoSpecError) -> None:
    if done.set_running_or_notify_cancel():
        done.set_exception(failure)
