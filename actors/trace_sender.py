"""Sends acceptance traces to the aligner without ever holding up a cycle."""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import replace

from actors.counts import TraceCounts
from evospec.align.trace import Trace

logger = logging.getLogger(__name__)

# Packs one trace and hands it to the aligner; never raises, errors are in the future.
SendTrace = Callable[[Trace], Future[None]]


class TraceSender:
    """A buffer bounded in bytes, emptied by a thread with few traces in flight.

    An aligner that fails costs the traces in flight and a pause, no more: the
    buffer keeps the latest traces until it is back.
    """

    def __init__(
        self, send: SendTrace, *, max_bytes: int, max_in_flight: int = 4, retry_s: float = 1.0
    ) -> None:
        self._send = send
        self._max_bytes = max_bytes
        self._max_in_flight = max_in_flight
        self._retry_s = retry_s
        self._wake = threading.Condition()
        self._buffer: deque[Trace] = deque()
        self._in_flight = 0
        self._failing = False
        self._stopping = False
        self._counts = TraceCounts()
        self._thread = threading.Thread(target=self._run, name="trace-sender", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self, timeout_s: float = 5.0) -> None:
        with self._wake:
            self._stopping = True
            self._wake.notify_all()
        self._thread.join(timeout_s)

    def offer(self, trace: Trace) -> None:
        """Queues a trace; drops the oldest ones, or a too large one, to stay within bounds."""
        with self._wake:
            self._buffer.append(trace)
            self._counts.queued_bytes += trace.nbytes
            while self._counts.queued_bytes > self._max_bytes:
                self._counts.queued_bytes -= self._buffer.popleft().nbytes
                self._counts.dropped_full += 1
            self._wake.notify_all()

    def counts(self) -> TraceCounts:
        with self._wake:
            return replace(self._counts, queued=len(self._buffer))

    def _run(self) -> None:
        while (trace := self._next()) is not None:
            self._send(trace).add_done_callback(lambda done: self._landed(done.exception()))

    def _next(self) -> Trace | None:
        """The oldest trace, once it may be sent; None when the sender stops."""
        with self._wake:
            if self._failing:
                self._wake.wait_for(lambda: self._stopping, self._retry_s)
                self._failing = False
            self._wake.wait_for(
                lambda: self._stopping or (self._buffer and self._in_flight < self._max_in_flight)
            )
            if self._stopping:
                return None
            trace = self._buffer.popleft()
            self._counts.queued_bytes -= trace.nbytes
            self._in_flight += 1
            return trace

    def _landed(self, error: BaseException | None) -> None:
        with self._wake:
            self._in_flight -= 1
            if error is None:
                self._counts.sent += 1
            else:
                self._failing = True
                self._counts.dropped_failed += 1
                if self._counts.dropped_failed == 1:
                    logger.warning(
                        "a trace did not reach the aligner; later ones are only counted: %s", error
                    )
            self._wake.notify_all()
