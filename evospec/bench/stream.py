"""`evospec bench stream`: requests whose topic changes, and how policies cope with that."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from pydantic import JsonValue

from evospec.bench.batches import EncodedPrompt, encode, fitting, longest, make_batches
from evospec.bench.decode import DecodeBench, load_models
from evospec.bench.measure import Batch, EngineArm, Turn
from evospec.bench.memory import PeakMemory
from evospec.bench.models import BenchModels
from evospec.bench.prompts import PromptFileError, read_prompts
from evospec.bench.results import Results
from evospec.bench.settings import DecodeSettings
from evospec.bench.stream_records import Stream
from evospec.bench.stream_summary import summarise_stream


@dataclass(frozen=True, slots=True)
class StreamSettings:
    """What to run.

    Attributes:
        decode: models, prompts and policies; domains are topics, and one request runs at a time.
        every: requests of a topic before the next one.
        rounds: how often each topic comes.
        warm: prompt files that learning policies decode first; what they learn from them is kept.
        warm_split, warm_limit: of these files' lines, and prompts per topic.
    """

    decode: DecodeSettings
    every: int = 4
    rounds: int = 2
    warm: tuple[Path, ...] = ()
    warm_split: str | None = None
    warm_limit: int | None = None

    def described(self) -> dict[str, JsonValue]:
        """For the result file, beside those of `decode`."""
        return {
            "every": self.every,
            "rounds": self.rounds,
            "warm": [file.name for file in self.warm],
            "warm_split": self.warm_split,
            "warm_limit": self.warm_limit,
        }


@dataclass(slots=True)
class StreamBench:
    """A decode bench whose batches are the stream's requests.

    Attributes:
        warm: requests that come before it.
    """

    settings: StreamSettings
    bench: DecodeBench
    warm: list[Batch]

    @classmethod
    def load(cls, settings: StreamSettings) -> StreamBench:
        """Raises EvoSpecError: an arm, prompt file or model is not usable, or a topic has too few prompts."""
        decode = settings.decode
        models = load_models(decode)
        found = read_prompts(decode.prompts, split=decode.split, limit=decode.limit)
        encoded = encode(found, models.target.tokenizer, decode)
        kept = fitting(encoded, decode.max_tokens, models.room)
        batches = make_batches(in_turns(kept, settings.every, settings.rounds), decode)
        warm = _warm(settings, models)
        positions = longest(warm) if warm else 0
        bench = DecodeBench.over(
            decode, models, batches, skipped=len(encoded) - len(kept), positions=positions
        )
        return cls(settings, bench, warm)

    @property
    def learners(self) -> list[EngineArm]:
        """Arms whose active rows change."""
        own = [arm for arm in self.bench.arms if isinstance(arm, EngineArm)]
        return [arm for arm in own if arm.engine.stats.vocabulary_epoch > 0]

    def learn(self) -> Iterator[Turn]:
        """Decodes what comes before the stream; its turns count for nothing."""
        memory = PeakMemory(self.bench.models.target.device)
        for batch in self.warm:
            for arm in self.learners:
                yield arm.run(batch, memory)

    def results(self, turns: Sequence[Turn]) -> tuple[Results, Stream]:
        """Checks every output against plain decoding's, then sums up; the results hold the stream too."""
        found = self.bench.results(turns)
        drafting = [arm.name.text for arm in self.bench.arms if arm.name.drafting is not None]
        stream = summarise_stream(turns, drafting)
        settings = found.settings | self.settings.described()
        return found.model_copy(update={"settings": settings, "stream": stream}), stream


def in_turns(prompts: Sequence[EncodedPrompt], every: int, rounds: int) -> list[EncodedPrompt]:
    """So many prompts of each topic, then of the next, and all over again.

    Raises:
        PromptFileError: there is one topic, or one has too few prompts.
    """
    topics: dict[str, list[EncodedPrompt]] = {}
    for prompt in prompts:
        topics.setdefault(prompt.prompt.domain, []).append(prompt)
    if len(topics) < 2:
        raise PromptFileError(
            f"a stream needs at least two topics, the prompts are all of {next(iter(topics))}"
        )
    for topic, members in topics.items():
        if len(members) < every * rounds:
            raise PromptFileError(
                f"topic {topic} has {len(members)} prompts that fit, {rounds} rounds of {every} need "
                f"{every * rounds}: lower --every or --rounds"
            )
    return [
        prompt
        for turn in range(rounds)
        for members in topics.values()
        for prompt in members[turn * every : (turn + 1) * every]
    ]


def _warm(settings: StreamSettings, models: BenchModels) -> list[Batch]:
    if not settings.warm:
        return []
    decode = settings.decode
    found = read_prompts(settings.warm, split=settings.warm_split, limit=settings.warm_limit)
    kept = fitting(encode(found, models.target.tokenizer, decode), decode.max_tokens, models.room)
    return [
        replace(batch, requests=tuple(replace(each, id=f"warm/{each.id}") for each in batch.requests))
        for batch in make_batches(kept, decode)
    ]
