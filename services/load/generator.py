"""Sends a run's requests: so many at a time, or as they arrive."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from evospec.bench.prompts import Prompt
from services.load.client import Answer


class Sender(Protocol):
    """What the generator needs of `services.load.client.LoadClient`."""

    async def send(self, prompt: Prompt) -> Answer: ...


@dataclass(frozen=True, slots=True)
class Sent:
    """A request and its answer.

    `due` is when it was to be sent, by `time.perf_counter`: its latencies count from there, however late
    it was sent, so that a load generator or an endpoint that falls behind is not let off.
    """

    place: int
    prompt: Prompt
    due: float
    answer: Answer


Heard = Callable[[Sent], None]


async def closed_loop(sender: Sender, prompts: Sequence[Prompt], concurrency: int, heard: Heard) -> None:
    """Keeps `concurrency` requests under way; calls `heard` with each when its answer is complete."""
    waiting = iter(enumerate(prompts))
    async with asyncio.TaskGroup() as workers:
        for _ in range(min(concurrency, len(prompts))):
            workers.create_task(_work(sender, waiting, heard))


async def open_loop(
    sender: Sender, prompts: Sequence[Prompt], arrivals: Sequence[float], heard: Heard
) -> None:
    """Sends each request when it is due, however many are under way.

    Args:
        arrivals: seconds from now, ascending; one per prompt.
    """
    began = time.perf_counter()
    async with asyncio.TaskGroup() as under_way:
        for place, (prompt, arrival) in enumerate(zip(prompts, arrivals, strict=True)):
            due = began + arrival
            await asyncio.sleep(max(0.0, due - time.perf_counter()))
            under_way.create_task(_send(sender, place, prompt, due, heard))


async def _work(sender: Sender, waiting: Iterator[tuple[int, Prompt]], heard: Heard) -> None:
    for place, prompt in waiting:
        await _send(sender, place, prompt, time.perf_counter(), heard)


async def _send(sender: Sender, place: int, prompt: Prompt, due: float, heard: Heard) -> None:
    heard(Sent(place, prompt, due, await sender.send(prompt)))
