from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Future

import pytest

from actors.trace_sender import TraceSender
from evospec.align.trace import Trace
from tests.unit.actors.fakes import trace, wait_until


class Transport:
    """Keeps the futures it handed out, so that a test decides when calls end."""

    def __init__(self) -> None:
        self.calls: list[tuple[Trace, Future[None]]] = []

    def __call__(self, item: Trace) -> Future[None]:
        future: Future[None] = Future()
        self.calls.append((item, future))
        return future

    @property
    def open(self) -> list[Future[None]]:
        return [future for _, future in self.calls if not future.done()]


@pytest.fixture
def transport() -> Transport:
    return Transport()


@pytest.fixture
def senders() -> Iterator[list[TraceSender]]:
    started: list[TraceSender] = []
    yield started
    for sender in started:
        sender.stop()


def start(transport: Transport, senders: list[TraceSender], max_bytes: int = 1 << 20) -> TraceSender:
    sender = TraceSender(transport, max_bytes=max_bytes, max_in_flight=2, retry_s=0.01)
    senders.append(sender)
    sender.start()
    return sender


def test_few_calls_are_in_flight_and_all_traces_arrive_in_order(
    transport: Transport, senders: list[TraceSender]
) -> None:
    sender = start(transport, senders)
    sent = [trace(width) for width in range(1, 8)]
    for item in sent:
        sender.offer(item)
    for landed in range(len(sent)):
        in_flight = min(2, len(sent) - landed)
        wait_until(lambda wanted=in_flight: len(transport.open) == wanted)
        assert len(transport.calls) == landed + in_flight
        transport.open[0].set_result(None)
    wait_until(lambda: sender.counts().sent == len(sent))
    assert [item for item, _ in transport.calls] == sent
    assert sender.counts().queued == sender.counts().queued_bytes == 0


def test_the_oldest_traces_make_room_and_are_counted(
    transport: Transport, senders: list[TraceSender]
) -> None:
    size = trace().nbytes
    sender = start(transport, senders, max_bytes=3 * size)
    busy = [trace(), trace()]
    for item in busy:
        sender.offer(item)
    wait_until(lambda: len(transport.calls) == 2)
    waiting = [trace() for _ in range(5)]
    for item in waiting:
        sender.offer(item)
    assert sender.counts().dropped_full == 2
    assert sender.counts().queued_bytes == 3 * size
    for _, future in transport.calls[:2]:
        future.set_result(None)
    wait_until(lambda: len(transport.calls) == 4)
    assert transport.calls[2][0] is waiting[2]  # 0 and 1 had to go


def test_a_trace_above_the_bound_is_dropped_not_kept(
    transport: Transport, senders: list[TraceSender]
) -> None:
    sender = start(transport, senders, max_bytes=trace(4).nbytes)
    sender.offer(trace(400))
    assert sender.counts().dropped_full == 1
    assert sender.counts().queued == 0


def test_without_an_aligner_traces_are_dropped_and_counted_until_it_is_back(
    transport: Transport, senders: list[TraceSender]
) -> None:
    sender = start(transport, senders)
    for _ in range(3):
        sender.offer(trace())
        wait_until(lambda: bool(transport.open))
        transport.open[0].set_exception(RuntimeError("no such actor"))
    wait_until(lambda: sender.counts().dropped_failed == 3)
    sender.offer(trace())
    wait_until(lambda: bool(transport.open))
    transport.open[0].set_result(None)
    wait_until(lambda: sender.counts().sent == 1)


def test_failures_are_logged_once(
    transport: Transport, senders: list[TraceSender], caplog: pytest.LogCaptureFixture
) -> None:
    sender = start(transport, senders)
    for count in range(1, 4):
        sender.offer(trace())
        wait_until(lambda: bool(transport.open))
        transport.open[0].set_exception(RuntimeError("no such actor"))
        wait_until(lambda count=count: sender.counts().dropped_failed == count)
    assert len(caplog.records) == 1
