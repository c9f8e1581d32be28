"""The decoding replicas behind the gateway."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from typing import Any, Protocol

from ray.exceptions import RayActorError
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError
from ray.serve.handle import DeploymentHandle

from actors.generation import GenerationChunk, GenerationFailure, GenerationRequest, ModelLimits
from evospec.errors import EvoSpecError


class OverloadedError(EvoSpecError):
    """All replicas are busy and the waiting line is full."""


class ReplicaLostError(EvoSpecError):
    """The replica that had the request is gone, or none is there to take it."""


class ReplicaPool(Protocol):
    """Any of the replicas, chosen by load. All methods raise the two errors above."""

    def generate(self, request: GenerationRequest) -> AsyncGenerator[GenerationChunk | GenerationFailure]: ...

    async def limits(self) -> ModelLimits: ...


class ServeReplicaPool:
    """Replicas of a Ray Serve deployment; closing or cancelling an iterator cancels its request."""

    def __init__(self, handle: DeploymentHandle[Any]) -> None:
        self._handle = handle
        self._streaming = handle.options(stream=True)

    async def generate(
        self, request: GenerationRequest
    ) -> AsyncGenerator[GenerationChunk | GenerationFailure]:
        response: Any = self._streaming.generate.remote(request)
        try:
            async for item in response:
                yield item
        except BackPressureError as error:
            raise OverloadedError(str(error)) from None
        except (RayActorError, DeploymentUnavailableError) as error:
            raise ReplicaLostError(f"a replica was lost: {error}") from None
        except (asyncio.CancelledError, GeneratorExit):  # the consumer is gone
            response.cancel()
            raise

    async def limits(self) -> ModelLimits:
        try:
            limits: ModelLimits = await self._handle.limits.remote()
        except BackPressureError as error:
            raise OverloadedError(str(error)) from None
        except (RayActorError, DeploymentUnavailableError) as error:
            raise ReplicaLostError(f"no replica answers: {error}") from None
        return limits
