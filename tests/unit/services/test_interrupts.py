"""The first signal ends a command in order, wherever it strikes."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Iterator

import pytest

from services.interrupts import interrupt_once, run_interruptibly


@pytest.fixture(autouse=True)
def handlers() -> Iterator[None]:
    """Puts back what pytest had installed."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_inside_a_task_ends_all_tasks_before_it_shows(number: signal.Signals) -> None:
    ended: list[str] = []

    async def busy() -> None:
        try:
            os.kill(os.getpid(), number)  # as if the signal struck in the middle of this task
            os.kill(os.getpid(), number)
            await asyncio.sleep(60)
        finally:
            ended.append("task")

    async def main() -> None:
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(busy())
        finally:
            ended.append("main")

    interrupt_once()
    with pytest.raises(KeyboardInterrupt):
        run_interruptibly(main())
    assert ended == ["task", "main"]
    assert signal.getsignal(number) is signal.SIG_IGN  # nothing may disturb the clean-up


def test_without_a_signal_the_result_comes_back_and_handlers_stay() -> None:
    async def main() -> int:
        return 7

    interrupt_once()
    handler = signal.getsignal(signal.SIGINT)
    assert run_interruptibly(main()) == 7
    assert signal.getsignal(signal.SIGINT) is handler


def test_a_cancellation_of_its_own_is_no_interrupt() -> None:
    async def main() -> None:
        raise asyncio.CancelledError

    interrupt_once()
    with pytest.raises(asyncio.CancelledError):
        run_interruptibly(main())
