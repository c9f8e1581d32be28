"""How Ray Serve's ways to fail become ours, and when a request is cancelled."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from ray.exceptions import ActorUnavailableError
from ray.serve.exceptions import BackPressureError

from actors.generation import GenerationChunk, GenerationRequest, ModelLimits
from evospec.engine.request import SamplingParams
from services.replica_pool import OverloadedError, ReplicaLostError, ServeReplicaPool

REQUEST = GenerationRequest("r", (1,), SamplingParams())
CHUNK = GenerationChunk("a", (1,), 0, 0, 0, 0)


class Response:
    """A streaming response of a deployment handle; as with Serve's, cancelling a failed one raises."""

    def __init__(self, items: list[Any]) -> None:
        self.items = items
        self.cancelled = 0
        self.failure: Exception | None = None

    async def __aiter__(self) -> AsyncIterator[Any]:
        for item in self.items:
            if isinstance(item, Exception):
                self.failure = item
                raise item
            if item == "wait":
                await asyncio.sleep(3600)
            yield item

    def cancel(self) -> None:
        if self.failure is not None:
            raise self.failure
        self.cancelled += 1


class Handle:
    """A deployment handle whose calls give the same response."""

    def __init__(self, response: Any) -> None:
        self.response = response

    def options(self, *, stream: bool) -> Handle:
        return self

    def __getattr__(self, name: str) -> Handle:
        return self

    def remote(self, *_: object) -> Any:
        return self.response


def pool(response: Any) -> ServeReplicaPool:
    handle: Any = Handle(response)
    return ServeReplicaPool(handle)


def test_a_stream_passes_through_and_is_not_cancelled() -> None:
    response = Response([CHUNK, CHUNK])

    async def run() -> list[Any]:
        return [item async for item in pool(response).generate(REQUEST)]

    assert asyncio.run(run()) == [CHUNK, CHUNK]
    assert response.cancelled == 0


@pytest.mark.parametrize(
    ("failure", "ours"),
    [(BackPressureError(8, 8), OverloadedError), (ActorUnavailableError("gone", None), ReplicaLostError)],
)
def test_failures_become_ours(failure: Exception, ours: type[Exception]) -> None:
    async def run() -> None:
        async for _ in pool(Response([CHUNK, failure])).generate(REQUEST):
            continue

    with pytest.raises(ours):
        asyncio.run(run())


def test_a_consumer_that_closes_cancels() -> None:
    response = Response([CHUNK, CHUNK])

    async def run() -> None:
        stream = pool(response).generate(REQUEST)
        await anext(stream)
        await stream.aclose()

    asyncio.run(run())
    assert response.cancelled == 1


def test_a_consumer_that_is_cancelled_cancels() -> None:
    response = Response([CHUNK, "wait"])

    async def run() -> None:
        stream = pool(response).generate(REQUEST)
        await anext(stream)
        task = asyncio.ensure_future(anext(stream))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(run())
    assert response.cancelled == 1


@pytest.mark.parametrize(
    ("failure", "ours"),
    [(BackPressureError(8, 8), OverloadedError), (ActorUnavailableError("gone", None), ReplicaLostError)],
)
def test_limits_fail_in_the_same_way(failure: Exception, ours: type[Exception]) -> None:
    async def broken() -> ModelLimits:
        raise failure

    async def run() -> None:
        await pool(broken()).limits()

    with pytest.raises(ours):
        asyncio.run(run())
