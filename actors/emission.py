"""What a cycle yields for one request, and its way from the engine's thread to an event loop."""

from __future__ import annotations

import asyncio
import logging
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

    __slots__ = ("_loop", "_queue")

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._queue: asyncio.Queue[Emission | EvoSpecError] = asyncio.Queue()

    def deliver(self, item: Emission | EvoSpecError) -> None:
        """Callable from any thread."""
        try:
            self._loop.call_soon_threadsafe(self._queue.put_nowait, item)
        except RuntimeError:  # the consumer's loop is closed: nobody is left to tell
            logger.debug("an output came after its event loop was closed")

    async def next(self) -> Emission:
        """Raises EvoSpecError when the request was refused or lost."""
        item = await self._queue.get()
        if isinstance(item, EvoSpecError):
            raise item
        return item
