"""What a cycle yields for one request, and its way from the engine's thread to an event loop."""

from __future__ import annotations

import asyncio
import logging
import math
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from evospec.engine.request import StepOutput
from evospec.errors import EvoSpecError

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Emission:
    """A cycle's output for one request, with the state of the drafter that it came from."""

    output: StepOutput
    adapter_version: int
    vocabulary_epoch: int


Deliver = Callable[[Emission | EvoSpecError], None]


class OutputStream:
    """One request's emissions, awaited on the asyncio loop that made the stream."""

    __slots__ = ("_ended", "_items", "_loop", "_paused", "_ready")

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._items: deque[Emission | EvoSpecError] = deque()
        self._ready = asyncio.Event()
        self._ended = False
        self._paused = False

    def deliver(self, item: Emission | EvoSpecError) -> None:
        """Callable from any thread."""
        self._items.append(item)
        if isinstance(item, EvoSpecError) or item.output.finish_reason is not None:
            self._ended = True
        elif self._paused:  # whoever waits does so for a time: no need to wake its loop
            return
        try:
            self._loop.call_soon_threadsafe(self._ready.set)
        except RuntimeError:  # the consumer's loop is closed: nobody is left to tell
            logger.debug("an output came after its event loop was closed")

    async def next(self) -> Emission:
        """Raises EvoSpecError when the request was refused or lost."""
        while not self._items:
            await self._delivery()
        item = self._items.popleft()
        if isinstance(item, EvoSpecError):
            raise item
        return item

    async def take(self, not_before: float) -> list[Emission]:
        """All emissions that have come by `not_before`, in time of the loop, or by the request's end where
        that is earlier; at least one, however late it comes.

        Raises:
            EvoSpecError: as `next`, once all that came before was taken.
        """
        await self._pause(not_before)
        taken = [await self.next()]
        while self._items and isinstance(self._items[0], Emission):
            taken.append(await self.next())
        return taken

    async def _pause(self, until: float) -> None:
        self._paused = True
        try:
            async with asyncio.timeout_at(None if math.isinf(until) else until):
                while not self._ended and until > self._loop.time():
                    await self._delivery()
        except TimeoutError:
            pass
        finally:
            self._paused = False

    async def _delivery(self) -> None:
        """Until something is delivered that wakes this loop; it may have been taken by then."""
        self._ready.clear()
        if not (self._ended or (self._items and not self._paused)):
            await self._ready.wait()
