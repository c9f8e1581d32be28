"""The choices of one request: generations that begin together, run side by side and end together."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Coroutine, Sequence
from dataclasses import dataclass
from typing import Any

from actors.generation import GenerationChunk


@dataclass(frozen=True, slots=True)
class Begun:
    """A generation that has begun, and its chunks after the first one."""

    first: GenerationChunk
    rest: AsyncGenerator[GenerationChunk]


@dataclass(frozen=True, slots=True)
class ChoiceChunk:
    """What a cycle added to one of a request's choices."""

    index: int
    chunk: GenerationChunk


async def begin_all(starting: Sequence[Coroutine[Any, Any, Begun]]) -> list[Begun]:
    """Begins all of them, or none: when one can't begin, the others are closed and its error is raised."""
    tasks = [asyncio.ensure_future(start) for start in starting]
    try:
        return await asyncio.gather(*tasks)
    except BaseException:
        for task in tasks:
            task.cancel()
        for begun in await asyncio.gather(*tasks, return_exceptions=True):
            if not isinstance(begun, BaseException):
                await begun.rest.aclose()
        raise


async def side_by_side(choices: Sequence[Begun]) -> AsyncGenerator[ChoiceChunk]:
    """Chunks of all choices as they come; whatever ends it closes them all."""
    waiting: dict[asyncio.Task[GenerationChunk | None], int] = {}
    try:
        for index, choice in enumerate(choices):
            yield ChoiceChunk(index, choice.first)
        if len(choices) == 1:
            async for chunk in choices[0].rest:
                yield ChoiceChunk(0, chunk)
            return
        waiting = {_next(choice): index for index, choice in enumerate(choices)}
        while waiting:
            done, _ = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            for task in sorted(done, key=waiting.__getitem__):
                index, following = waiting.pop(task), task.result()
                if following is not None:
                    waiting[_next(choices[index])] = index
                    yield ChoiceChunk(index, following)
    finally:
        for task in waiting:
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)
        for choice in choices:
            await choice.rest.aclose()


def _next(choice: Begun) -> asyncio.Task[GenerationChunk | None]:
    """None once it has ended."""

    async def take() -> GenerationChunk | None:
        return await anext(choice.rest, None)

    return asyncio.ensure_future(take())
