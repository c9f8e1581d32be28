"""The stream of requests: topics one after the other, twice round, a few requests at a time."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from itertools import cycle, islice
from time import monotonic

from evospec.bench.prompts import Prompt
from services.demo.client import ChatClient
from services.demo.results import RequestRecord
from services.event_stream import RequestFailedError

ROUNDS = 2


@dataclass(frozen=True, slots=True)
class Errand:
    """A prompt to send, and its place in the stream."""

    prompt: Prompt
    round: int

    @property
    def topic(self) -> str:
        return self.prompt.domain


def schedule(prompts: Sequence[Prompt], requests: int, rounds: int = ROUNDS) -> list[Errand]:
    """Every topic once per round, in the order in which they appear; later rounds go on with its prompts.

    Equal shares; the first topics get what is left over. Prompts come again only when
    a topic has used all of its own.
    """
    by_topic: dict[str, list[Prompt]] = {}
    for prompt in prompts:
        by_topic.setdefault(prompt.domain, []).append(prompt)
    supplies = {topic: cycle(own) for topic, own in by_topic.items()}
    share, rest = divmod(requests, rounds * len(supplies))
    errands: list[Errand] = []
    for segment in range(rounds * len(supplies)):
        topic = list(supplies)[segment % len(supplies)]
        count = share + (segment < rest)
        number = segment // len(supplies) + 1
        errands.extend(Errand(prompt, number) for prompt in islice(supplies[topic], count))
    return errands


@dataclass(slots=True)
class Traffic:
    """Sends errands and keeps a record of each; times count from the first."""

    errands: Sequence[Errand]
    client: ChatClient
    records: list[RequestRecord] = field(default_factory=list)
    current: Errand | None = None
    _began: float = field(default_factory=monotonic)

    def now(self) -> float:
        """Seconds since the traffic began."""
        return monotonic() - self._began

    @property
    def failed(self) -> list[RequestRecord]:
        return [record for record in self.records if record.failed]

    async def run(self, concurrency: int) -> None:
        """Returns when every errand has a record; failed ones have theirs as well."""
        waiting = iter(self.errands)
        async with asyncio.TaskGroup() as workers:
            for _ in range(concurrency):
                workers.create_task(self._work(waiting))

    async def _work(self, waiting: Iterator[Errand]) -> None:
        for errand in waiting:
            self.current = errand
            self.records.append(await self._send(errand))

    async def _send(self, errand: Errand) -> RequestRecord:
        started = self.now()
        first_token: list[float] = []
        outcome: dict[str, object]
        try:
            usage = await self.client.ask(errand.prompt.text, lambda: first_token.append(self.now()))
        except RequestFailedError as error:
            outcome = {"error": str(error)}
        else:
            outcome = asdict(usage)
        return RequestRecord.model_validate(
            {
                "prompt": errand.prompt.id,
                "topic": errand.topic,
                "round": errand.round,
                "started_s": started,
                "first_token_s": first_token[0] if first_token else None,
                "finished_s": self.now(),
                **outcome,
            }
        )
