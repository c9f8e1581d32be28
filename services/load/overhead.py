"""`evospec bench overhead`: what HTTP, gateway and Ray Serve cost beside the engine's own time."""

from __future__ import annotations

import asyncio
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import httpx
from pydantic import JsonValue

from evospec.bench.prompts import Prompt
from evospec.bench.results import shown_name
from evospec.bench.summary import quartiles
from evospec.config import AlignmentConfig, Config, EngineConfig, ModelConfig, SemanticConfig, ServeConfig
from evospec.engine.build import load_engine
from evospec.engine.request import SamplingParams
from services.load.client import LoadClient
from services.load.direct import DirectEngine
from services.load.generator import Sent, closed_loop
from services.load.overhead_results import OverheadRow, Pair
from services.load.schedule import in_order
from services.load.settings import Asked, LoadError
from services.load.timing import Timed
from services.local_cluster import LocalCluster
from services.prompt_encoder import PromptEncoder

MODEL = "model"


@dataclass(frozen=True, slots=True)
class OverheadSettings:
    """Both sides get the same prompts, in turns; nothing learns across them but the active rows.

    Attributes:
        streams: requests at a time; each number is measured on its own.
        rounds: turns of each side and number that count; one before doesn't.
        requests: per turn, times the number of streams.
        threads: of each engine. One core less than there are leaves room for the server.
    """

    prompts: tuple[Path, ...]
    target: str
    drafter: str | None
    streams: tuple[int, ...] = (1, 16)
    rounds: int = 5
    requests: int = 2
    max_tokens: int = 96
    threads: int = 1
    dtype: str = "auto"

    def config(self) -> Config:
        model = ModelConfig(target=self.target, drafter=self.drafter, device="cpu", threads=self.threads)
        return Config(
            model=model.model_copy(update={"dtype": self.dtype}),
            engine=EngineConfig(max_batch=max(self.streams)),
            semantic=SemanticConfig(enabled=False),
            alignment=AlignmentConfig(enabled=False),
            serve=ServeConfig(port=0, model_name=MODEL),
        )

    def described(self) -> dict[str, JsonValue]:
        return {
            "target": shown_name(self.target),
            "drafter": None if self.drafter is None else shown_name(self.drafter),
            "prompts": [path.name for path in self.prompts],
            "streams": list(self.streams),
            "rounds": self.rounds,
            "requests": self.requests,
            "max_tokens": self.max_tokens,
            "threads": self.threads,
            "dtype": self.dtype,
        }


class OverheadBench:
    """An engine here, and the same behind a server on this machine."""

    def __init__(self, settings: OverheadSettings, cluster: LocalCluster, prompts: Sequence[Prompt]) -> None:
        self._settings = settings
        self._cluster = cluster
        self._asked = Asked(max_tokens=settings.max_tokens, ignore_eos=True)
        engine = load_engine(settings.config())
        sampling = SamplingParams(temperature=0.0, max_tokens=settings.max_tokens, ignore_eos=True)
        self._encoder = PromptEncoder(engine.target.tokenizer)
        if engine.target.tokenizer.chat_template is None:
            self._asked = replace(self._asked, chat=False)
        self._direct = DirectEngine(engine, sampling)
        self._prompts = prompts

    def pairs(self, streams: int) -> Iterator[Pair]:
        """One per round, the first of which warms up both sides. Sides take turns in going first."""
        for number in range(self._settings.rounds + 1):
            count = self._settings.requests * streams
            prompts = in_order(self._prompts, count, None, seed=number)
            if number % 2:
                direct = self._run_direct(prompts, streams)
                served = self._run_served(prompts, streams)
            else:
                served = self._run_served(prompts, streams)
                direct = self._run_direct(prompts, streams)
            if number:
                yield _pair(direct, served)

    def _run_direct(self, prompts: Sequence[Prompt], streams: int) -> list[Timed]:
        return self._direct.run(asyncio.run(self._encoded(prompts)), streams)

    async def _encoded(self, prompts: Sequence[Prompt]) -> list[tuple[int, ...]]:
        from services.openai_schema import Message

        if not self._asked.chat:
            return [await self._encoder.text(prompt.text) for prompt in prompts]
        return [await self._encoder.chat([Message(role="user", content=one.text)]) for one in prompts]

    def _run_served(self, prompts: Sequence[Prompt], streams: int) -> list[Timed]:
        return asyncio.run(self._served(prompts, streams))

    async def _served(self, prompts: Sequence[Prompt], streams: int) -> list[Timed]:
        sent: list[Sent] = []
        async with httpx.AsyncClient(
            base_url=self._cluster.url,
            timeout=600,
            limits=httpx.Limits(max_connections=None),
            trust_env=False,
        ) as http:
            await closed_loop(LoadClient(http, MODEL, self._asked), prompts, streams, sent.append)
        return [_timed(one) for one in sent]


def row(streams: int, pairs: Sequence[Pair]) -> OverheadRow:
    """Medians over rounds."""
    ratios = [pair.served_tokens_per_s / pair.direct_tokens_per_s for pair in pairs]
    added = [pair.served_ttft_ms - pair.direct_ttft_ms for pair in pairs]
    return OverheadRow(
        streams=streams,
        direct_tokens_per_s=statistics.median(pair.direct_tokens_per_s for pair in pairs),
        served_tokens_per_s=statistics.median(pair.served_tokens_per_s for pair in pairs),
        overhead=1.0 - statistics.median(ratios),
        overhead_quartiles=quartiles([1.0 - ratio for ratio in ratios]),
        direct_ttft_ms=statistics.median(pair.direct_ttft_ms for pair in pairs),
        served_ttft_ms=statistics.median(pair.served_ttft_ms for pair in pairs),
        ttft_added_ms=statistics.median(added),
        ttft_added_quartiles=quartiles(added),
        pairs=tuple(pairs),
    )


def _pair(direct: Sequence[Timed], served: Sequence[Timed]) -> Pair:
    """Raises LoadError unless both sides generated as much."""
    here, there = (sum(timed.tokens for timed in side) for side in (direct, served))
    if here != there:
        raise LoadError(f"the engine generated {here} tokens and the server {there}: they can't be compared")
    return Pair(
        tokens=here,
        direct_tokens_per_s=here / _seconds(direct),
        served_tokens_per_s=there / _seconds(served),
        direct_ttft_ms=statistics.median(timed.ttft_ms for timed in direct),
        served_ttft_ms=statistics.median(timed.ttft_ms for timed in served),
    )


def _seconds(side: Sequence[Timed]) -> float:
    return max(timed.finished for timed in side) - min(timed.started for timed in side)


def _timed(sent: Sent) -> Timed:
    answer = sent.answer
    if answer.error is not None:
        raise LoadError(f"the server did not answer a request: {answer.error}")
    first = answer.pieces[0] if answer.pieces else None
    return Timed(answer.started, first, answer.finished, answer.tokens)
