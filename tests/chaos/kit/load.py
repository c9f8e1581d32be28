"""Clients that ask one question after the other, on a thread of their own."""

from __future__ import annotations

import asyncio
import copy
import threading
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType

import httpx
import numpy as np

from tests.chaos.kit.known_prompts import KnownPrompt
from tests.chaos.kit.patience import wait_for
from tests.chaos.kit.streaming_client import StreamingClient
from tests.chaos.kit.tally import Tally

STOP_TIMEOUT_S = 300.0


class Load:
    """`clients` at work between `start` and `stop`; each has one request at a time.

    Args:
        url: base URL of the endpoint.
    """

    def __init__(
        self, url: str, model: str, prompts: Sequence[KnownPrompt], *, clients: int, seed: int = 0
    ) -> None:
        self._url = url
        self._model = model
        self._prompts = prompts
        self._clients = clients
        self._seed = seed
        self._tally = Tally()
        self._lock = threading.Lock()
        self._stopping = threading.Event()
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="load")
        self._work: Future[None] | None = None

    def __enter__(self) -> Load:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()

    def start(self) -> None:
        self._work = self._pool.submit(lambda: asyncio.run(self._ask()))

    def stop(self) -> Tally:
        """Lets running requests end. Raises what went wrong in the clients themselves."""
        self._stopping.set()
        self._pool.shutdown(wait=False)
        if self._work is not None:
            self._work.result(STOP_TIMEOUT_S)
        return self._tally

    def tally(self) -> Tally:
        """As it stands now."""
        with self._lock:
            return copy.deepcopy(self._tally)

    def complete(self) -> int:
        with self._lock:
            return self._tally.complete

    def served(self, more: int) -> None:
        """Waits until `more` requests than now are complete."""
        goal = self.complete() + more
        wait_for(lambda: self._ended() or self.complete() >= goal)

    def _ended(self) -> bool:
        return self._work is not None and self._work.done()

    async def _ask(self) -> None:
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=self._clients)
        async with httpx.AsyncClient(base_url=self._url, limits=limits, trust_env=False) as http:
            client = StreamingClient(http, self._model)
            await asyncio.gather(*(self._ask_on(client, number) for number in range(self._clients)))

    async def _ask_on(self, client: StreamingClient, number: int) -> None:
        random = np.random.default_rng((self._seed, number))
        while not self._stopping.is_set():
            prompt = self._prompts[int(random.integers(len(self._prompts)))]
            answer = await client.ask(prompt)
            with self._lock:
                self._tally.add(prompt, answer)
