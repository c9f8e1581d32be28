"""Ctrl-C and SIGTERM, for commands that must stop all that they started."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Coroutine
from types import FrameType
from typing import Any, TypeVar

Result = TypeVar("Result")

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


def interrupt_once() -> None:
    """The first SIGINT or SIGTERM is a KeyboardInterrupt; later ones must not disturb the clean-up."""
    for number in _SIGNALS:
        signal.signal(number, _interrupt)


def run_interruptibly(main: Coroutine[Any, Any, Result]) -> Result:
    """`asyncio.run` for a command under `interrupt_once`.

    A KeyboardInterrupt raised by a signal handler would surface in whatever task happens to
    run. Here the first signal cancels `main` instead, and KeyboardInterrupt is raised once
    all its tasks have ended.
    """
    interrupted = False

    async def guarded() -> Result:
        loop, task = asyncio.get_running_loop(), asyncio.current_task()

        def cancel() -> None:
            nonlocal interrupted
            if not interrupted and task is not None:
                interrupted = True
                task.cancel()

        for number in _SIGNALS:
            loop.add_signal_handler(number, cancel)
        try:
            return await main
        finally:
            for number in _SIGNALS:
                loop.remove_signal_handler(number)
                signal.signal(number, signal.SIG_IGN if interrupted else _interrupt)

    try:
        return asyncio.run(guarded())
    except asyncio.CancelledError:
        if interrupted:
            raise KeyboardInterrupt from None
        raise


def _interrupt(number: int, frame: FrameType | None) -> None:
    for each in _SIGNALS:
        signal.signal(each, signal.SIG_IGN)
    raise KeyboardInterrupt
