"""`evospec bench stream`: requests whose topic changes, and how policies cope with that."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pydantic import JsonValue

from evospec.bench.batches import EncodedPrompt, encode, fitting, make_batches
from evospec.bench.decode import DecodeBench, load_models
from evospec.bench.measure import Turn
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
    """

    decode: DecodeSettings
    every: int = 4
    rounds: int = 2

    def described(self) -> dict[str, JsonValue]:
        """For the result file, beside those of `decode`."""
        return {"every": self.every, "rounds": self.rounds}


@dataclass(slots=True)
class StreamBench:
    """A decode bench whose batches are the stream's requests."""

    settings: StreamSettings
    bench: DecodeBench

    @classmethod
    def load(cls, settings: StreamSettings) -> StreamBench:
        """With models of its own; raises what `load_models` and `of` do."""
        return cls.of(settings, load_models(settings.decode))

    @classmethod
    def of(cls, settings: StreamSettings, models: BenchModels) -> StreamBench:
        """Raises EvoSpecError: a prompt file is not usable, or a topic has too few prompts."""
        decode = settings.decode
        found = read_prompts(decode.prompts, split=decode.split, limit=decode.limit)
        encoded = encode(found, models.target.tokenizer, decode)
        kept = fitting(encoded, decode.max_tokens, models.room)
        batches = make_batches(in_turns(kept, settings.every, settings.rounds), decode)
        bench = DecodeBench.over(decode, models, batches, skipped=len(encoded) - len(kept))
        return cls(settings, bench)

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
