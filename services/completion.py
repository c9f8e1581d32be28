"""From a checked request to a running generation, whatever the endpoint."""

from __future__ import annotations

import asyncio
import logging
import time
import uuid
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass, field, replace

from actors.generation import GenerationChunk, GenerationFailure, GenerationRequest, ModelLimits
from services import api_errors
from services.api_errors import ApiError
from services.choices import Begun, ChoiceChunk, begin_all, side_by_side
from services.openai_schema import EvoSpecUsage, GenerationBody, Usage
from services.pace import Pace
from services.replica_pool import OverloadedError, ReplicaLostError, ReplicaPool
from services.request_ids import name_of_request

logger = logging.getLogger(__name__)

RETRY_AFTER_S = 1
ATTEMPTS = 2  # a request of which nothing was answered yet can be given to another replica


@dataclass(slots=True)
class Tally:
    """Counters of one request, for `usage`."""

    prompt_tokens: int
    choices: int = 1
    completion_tokens: int = 0
    cycles: int = 0
    drafted: int = 0
    accepted: int = 0
    adapter_version: int = 0
    vocabulary_epoch: int = 0

    def add(self, chunk: GenerationChunk) -> None:
        self.completion_tokens += len(chunk.token_ids)
        self.cycles += chunk.cycles
        self.drafted += chunk.drafted
        self.accepted += chunk.accepted
        self.adapter_version = chunk.adapter_version
        self.vocabulary_epoch = chunk.vocabulary_epoch

    def usage(self) -> Usage:
        return Usage(
            prompt_tokens=self.prompt_tokens,
            completion_tokens=self.completion_tokens,
            total_tokens=self.prompt_tokens + self.completion_tokens,
            evospec=EvoSpecUsage(
                cycles=max(self.cycles - self.choices, 0),  # the first of each is prefill's
                drafted=self.drafted,
                accepted=self.accepted,
                adapter_version=self.adapter_version,
                vocabulary_epoch=self.vocabulary_epoch,
            ),
        )


@dataclass(slots=True)
class Completion:
    """A generation that has begun.

    `chunks` yields what comes, the first chunk included, and raises ApiError when
    the rest is lost or late.
    """

    id: str
    model: str
    prompt_ids: tuple[int, ...]
    choices: int
    chunks: AsyncGenerator[ChoiceChunk]
    created: int = field(default_factory=lambda: int(time.time()))


@dataclass(frozen=True, slots=True)
class Origin:
    """Whose request it is, and whether anything may be learned from it."""

    tenant: str = ""
    trace: bool = True


class CompletionService:
    """Starts generations on a pool of replicas.

    Args:
        model: the one name that requests may ask for.
        timeout_s: a request that takes longer is given up.
        pace: how often chunks come; default: each cycle.
    """

    def __init__(self, pool: ReplicaPool, model: str, timeout_s: float, pace: Pace | None = None) -> None:
        self.model = model
        self._pool = pool
        self._timeout_s = timeout_s
        self._pace = pace or Pace()
        self._limits: ModelLimits | None = None

    def set_timeout(self, timeout_s: float) -> None:
        """For requests that begin from now on."""
        self._timeout_s = timeout_s

    async def limits(self) -> ModelLimits:
        """Raises ApiError when no replica answers."""
        return self._limits or await self.probe()

    async def probe(self) -> ModelLimits:
        """Asks a replica. Raises ApiError when none answers."""
        try:
            async with asyncio.timeout(self._timeout_s):
                self._limits = await self._pool.limits()
                return self._limits
        except OverloadedError:
            raise api_errors.overloaded(RETRY_AFTER_S) from None
        except (ReplicaLostError, TimeoutError):
            raise api_errors.unavailable(RETRY_AFTER_S) from None

    def check_model(self, name: str) -> None:
        """Raises ApiError (404) unless the request is for the model that is served."""
        if name != self.model:
            raise api_errors.model_not_found(name, self.model)

    async def start(
        self,
        body: GenerationBody,
        prompt_ids: tuple[int, ...],
        param: str,
        origin: Origin,
        *,
        each_cycle: bool = False,
    ) -> Completion:
        """Waits for the first chunk of each choice, so that what fails early is answered with its own status.

        Args:
            param: the parameter that the prompt came from.
            each_cycle: one chunk a cycle, however often they come.

        Raises:
            ApiError: prompt empty, too long or of unknown tokens; overload; no replica; timeout.
        """
        limits = await self.limits()
        _check_prompt(prompt_ids, limits, param)
        room = limits.max_length - len(prompt_ids)
        deadline = asyncio.get_running_loop().time() + self._timeout_s
        chunk_s = 0.0 if each_cycle else self._pace.interval(streamed=body.stream)
        requests = [
            GenerationRequest(
                "",
                prompt_ids,
                body.sampling(room, choice),
                body.stop_strings,
                origin.tenant,
                origin.trace and body.trace,
                body.alternatives,
                chunk_s,
            )
            for choice in range(body.choices)
        ]
        begun = await begin_all([self._begin(request, deadline, param) for request in requests])
        return Completion(uuid.uuid4().hex, self.model, prompt_ids, len(begun), side_by_side(begun))

    async def _begin(self, request: GenerationRequest, deadline: float, param: str) -> Begun:
        """Waits for the first chunk."""
        for _ in range(ATTEMPTS):
            chunks = self._chunks(replace(request, id=uuid.uuid4().hex), deadline, param)
            try:
                return Begun(await anext(chunks), chunks)
            except ReplicaLostError as error:
                logger.warning("%s was lost before its first token: %s", name_of_request(), error)
        raise api_errors.unavailable(RETRY_AFTER_S)

    async def _chunks(
        self, request: GenerationRequest, deadline: float, param: str
    ) -> AsyncGenerator[GenerationChunk]:
        """Chunks up to the last one.

        Raises:
            ReplicaLostError: nothing came yet: another replica can have the request.
            ApiError: anything else.
        """
        begun = finished = False
        async with self._pace.answer(), aclosing(self._pool.generate(request)) as stream:
            while not finished:
                try:
                    async with asyncio.timeout_at(deadline):
                        item = await anext(stream, _CUT_OFF)
                    if isinstance(item, GenerationFailure):
                        raise _failure(item, param)
                except TimeoutError:
                    raise api_errors.timed_out(self._timeout_s) from None
                except OverloadedError:
                    raise api_errors.overloaded(RETRY_AFTER_S) from None
                except ReplicaLostError as error:
                    if not begun:
                        raise
                    logger.warning("%s was lost while it ran: %s", name_of_request(), error)
                    raise api_errors.server_error("The replica that served this request was lost.") from None
                begun, finished = True, item.finish_reason is not None
                yield item


_CUT_OFF = GenerationFailure("failed", "the stream ended before the request did")


def _failure(failure: GenerationFailure, param: str) -> ApiError | ReplicaLostError:
    if failure.kind == "failed":
        return ReplicaLostError(failure.message)
    return api_errors.invalid(failure.message, failure.param or param)


def _check_prompt(prompt_ids: tuple[int, ...], limits: ModelLimits, param: str) -> None:
    if not prompt_ids:
        raise api_errors.invalid("The prompt is empty.", param)
    if len(prompt_ids) >= limits.max_length:
        raise api_errors.context_length_exceeded(len(prompt_ids), limits.max_length, param)
    if not 0 <= min(prompt_ids) <= max(prompt_ids) < limits.vocab_size:
        raise api_errors.invalid(f"Token ids must be in 0 .. {limits.vocab_size - 1}.", param)
