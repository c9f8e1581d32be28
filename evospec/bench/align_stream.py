"""`evospec bench stream --arms`: a long stream that changes its topic, and drafters that adapt to it."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch
from pydantic import JsonValue

from evospec.bench.adapted_arm import AdaptedArm
from evospec.bench.align_arms import parse_align_arms
from evospec.bench.align_records import Alignment, ArmFailure, StreamChunk
from evospec.bench.align_summary import held_out_run, visits_of
from evospec.bench.arms import ArmError, Drafting
from evospec.bench.batches import encode, fitting, make_batches, warm_up_batch
from evospec.bench.batches import longest as longest_of
from evospec.bench.conversations import Asked, Conversations
from evospec.bench.decode import SHORTEST, config_of
from evospec.bench.machine import describe_machine, git_commit
from evospec.bench.measure import Batch, Turn
from evospec.bench.memory import PeakMemory
from evospec.bench.models import BenchModels
from evospec.bench.prompts import PromptFileError, read_prompts
from evospec.bench.results import Results, shown_name
from evospec.bench.settings import DecodeSettings
from evospec.engine.request import Request, SamplingParams
from evospec.errors import EvoSpecError
from evospec.heap import settle_heap

ADAPT, EVAL = "adapt", "eval"  # splits: what streams, and what only reports
WARM_UP_ROUNDS = 2
_TURNS = 3  # answers and follow-ups that a request may carry beside its prompt
_RESERVE = 1.25  # of the time that held-out prompts are expected to take


@dataclass(frozen=True, slots=True)
class AlignStreamSettings:
    """What to run.

    Attributes:
        decode: models and prompts; its policies name one, that arms draft with unless they name another.
        topics: domains that stream, in their order; none: all. Held-out prompts are of all domains.
        every: requests of a topic before the next one.
        rounds: how often each topic comes.
        eval_limit: held-out prompts per domain.
        minutes: time for stream and held-out prompts, after loading: the stream ends early for it.
    """

    decode: DecodeSettings
    arms: tuple[str, ...]
    topics: tuple[str, ...] = ()
    every: int = 32
    rounds: int = 2
    eval_limit: int | None = None
    minutes: float | None = None

    def described(self) -> dict[str, JsonValue]:
        return self.decode.described() | {
            "arms": list(self.arms),
            "topics": list(self.topics),
            "every": self.every,
            "rounds": self.rounds,
            "eval_limit": self.eval_limit,
            "minutes": self.minutes,
            "split": [ADAPT, EVAL],
        }


@dataclass(frozen=True, slots=True)
class Stay:
    """Requests of one topic between two switches."""

    visit: int
    topic: str


@dataclass(slots=True)
class AlignStream:
    """Loaded models, the arms, what streams and what is held out."""

    settings: AlignStreamSettings
    models: BenchModels
    arms: list[AdaptedArm]
    topics: dict[str, Conversations]
    held_out: list[Batch]
    warm_up_batch: Batch
    longest: int
    chunks: list[StreamChunk] = field(default_factory=list)
    failures: list[ArmFailure] = field(default_factory=list)
    continued: int = 0
    _held_out_turns: list[Turn] = field(default_factory=list)

    @classmethod
    def load(cls, settings: AlignStreamSettings) -> AlignStream:
        """With models of its own; raises what `of` does, and for a model or drafter that is not usable."""
        parse_align_arms(settings.arms, settings.decode.policies[0])  # what is wrong is told at once
        return cls.of(settings, BenchModels.load(config_of(settings.decode, SHORTEST), drafts=True))

    @classmethod
    def of(cls, settings: AlignStreamSettings, models: BenchModels) -> AlignStream:
        """Raises EvoSpecError: an arm, prompt file or topic is not usable."""
        decode = settings.decode
        parsed = parse_align_arms(settings.arms, decode.policies[0])
        drafting = Drafting.parse(decode.drafting)
        streamed = read_prompts(decode.prompts, split=ADAPT, limit=decode.limit)
        reported = read_prompts(decode.prompts, split=EVAL, limit=settings.eval_limit)
        chosen = _chosen(settings.topics, list(dict.fromkeys(prompt.domain for prompt in streamed)))
        tokenizer, most = models.target.tokenizer, decode.max_tokens
        opening = fitting(encode(streamed, tokenizer, decode), most, models.room)
        held_out = make_batches(fitting(encode(reported, tokenizer, decode), most, models.room), decode)
        warm_up = warm_up_batch(tokenizer, decode)
        openings = [len(one.token_ids) for one in opening]
        longest = max(
            longest_of([*held_out, warm_up]), min(models.room, max(openings) + _TURNS * (most + 32))
        )
        topics = {
            topic: Conversations(tokenizer, own, longest - most, decode.chat)
            for topic in chosen
            if (own := [one for one in opening if one.prompt.domain == topic])
        }
        config = config_of(decode, longest)
        arms = [AdaptedArm.build(arm, models, config, drafting) for arm in parsed]
        return cls(settings, models, arms, topics, [_untraced(one) for one in held_out], warm_up, longest)

    @property
    def planned(self) -> int:
        return len(self.topics) * self.settings.every * self.settings.rounds

    @property
    def place(self) -> int:
        """Requests of the stream so far."""
        first = self.arms[0].arm.text
        return sum(chunk.requests for chunk in self.chunks if chunk.arm == first)

    def warm_up(self) -> None:
        """Captures graphs and decodes a prompt of no domain, which nobody learns from."""
        for arm in self.arms:
            arm.engine.prepare(self.longest)
            for _ in range(WARM_UP_ROUNDS):
                arm.decode(self.warm_up_batch, self._memory())
        settle_heap()

    def stream(self) -> Iterator[Stay]:
        """Decodes and learns; yields after each chunk. Ends early when the time is up."""
        started = time.perf_counter()
        topics = list(self.topics)
        for visit in range(len(topics) * self.settings.rounds):
            stay = Stay(visit, topics[visit % len(topics)])
            for first in range(0, self.settings.every, self.settings.decode.batch):
                count = min(self.settings.decode.batch, self.settings.every - first)
                self._chunk(stay, count)
                yield stay
                if self._time_is_up(time.perf_counter() - started):
                    return

    def report(self) -> Iterator[Batch]:
        """Decodes the held-out prompts with the arms as they are now; yields after each batch."""
        self._held_out_turns.clear()
        memory = self._memory()
        for batch in self.held_out:
            self._held_out_turns += [arm.decode(batch, memory) for arm in self.arms]
            yield batch

    def results(self) -> Results:
        """Of all that has run so far."""
        settings = self.settings.described() | {
            "arms": [arm.arm.text for arm in self.arms],
            "topics": list(self.topics),
            "dtype": str(self.models.target.dtype).removeprefix("torch."),
            "device": self.models.target.device.type,
            "policies": list(dict.fromkeys(arm.arm.policy for arm in self.arms)),
        }
        target, drafter = self.settings.decode.target, self.settings.decode.drafter
        domains = dict.fromkeys(turn.batch.domain for turn in self._held_out_turns)
        runs = [
            held_out_run(arm.arm, own, shown_name(target), shown_name(drafter), self.settings.decode.batch)
            for domain in domains
            for arm in self.arms
            if (own := self._turns_of(arm, domain))
        ]
        return Results(
            machine=describe_machine(),
            git=git_commit(),
            settings=settings,
            runs=tuple(runs),
            updates=tuple(costs for arm in self.arms if (costs := arm.costs) is not None),
            alignment=Alignment(
                planned=self.planned,
                requests=self.place,
                continued=self.continued,
                chunks=tuple(self.chunks),
                visits=tuple(visits_of(self.chunks, {one.arm.text: one.arm for one in self.arms})),
                failures=tuple(self.failures),
            ),
        )

    def _chunk(self, stay: Stay, count: int) -> None:
        conversations = self.topics[stay.topic]
        asked = [conversations.ask() for _ in range(count)]
        self.continued += sum(one.turn > 0 for one in asked)
        place, memory = self.place, self._memory()
        batch = Batch(
            place, stay.topic, tuple(self._request(place + row, one) for row, one in enumerate(asked))
        )
        first: Turn | None = None
        for arm in list(self.arms):
            turn = arm.decode(batch, memory)
            if first is None:
                first = turn
                for one, output in zip(asked, turn.outputs, strict=True):
                    conversations.answered(one.key, output)
            self.chunks.append(_record(stay, turn, first))
            self._learn(arm, count)

    def _learn(self, arm: AdaptedArm, requests: int) -> None:
        """An arm that runs out of memory, or can't learn, is given up; the others go on."""
        try:
            arm.learn(requests)
        except (EvoSpecError, torch.OutOfMemoryError) as error:
            problem = str(error).partition("\n")[0]
            self.failures.append(ArmFailure(arm=arm.arm.text, place=self.place, problem=problem))
            self.arms.remove(arm)

    def _request(self, number: int, asked: Asked) -> Request:
        sampling = SamplingParams(temperature=0.0, max_tokens=self.settings.decode.max_tokens)
        return Request(f"{number}:{asked.key}:{asked.turn}", asked.token_ids, sampling)

    def _time_is_up(self, seconds: float) -> bool:
        """Whether what is left is needed for the held-out prompts, at the stream's pace."""
        if self.settings.minutes is None:
            return False
        held_out = sum(len(batch.requests) for batch in self.held_out)
        expected = sum(chunk.seconds for chunk in self.chunks) / max(1, self.place) * held_out
        return seconds + _RESERVE * expected > 60 * self.settings.minutes

    def _turns_of(self, arm: AdaptedArm, domain: str) -> list[Turn]:
        return [
            turn for turn in self._held_out_turns if turn.arm == arm.arm.text and turn.batch.domain == domain
        ]

    def _memory(self) -> PeakMemory:
        return PeakMemory(self.models.target.device)


def _chosen(topics: Sequence[str], known: Sequence[str]) -> Sequence[str]:
    """The topics that stream; all, when none is named."""
    for topic in topics:
        if topic not in known:
            raise PromptFileError(
                f"no prompts of topic {topic!r} and split {ADAPT!r}: there are {', '.join(known)}"
            )
    if len(set(topics)) != len(topics):
        raise ArmError("a topic is named twice: --rounds says how often each comes")
    return topics or known


def _untraced(batch: Batch) -> Batch:
    requests = tuple(
        Request(f"eval/{one.id}", one.prompt_ids, one.sampling, trace=False) for one in batch.requests
    )
    return Batch(batch.number, batch.domain, requests)


def _record(stay: Stay, turn: Turn, first: Turn) -> StreamChunk:
    counters = turn.counters
    same = sum(mine == its for mine, its in zip(turn.outputs, first.outputs, strict=True))
    return StreamChunk(
        arm=turn.arm,
        place=turn.batch.number,
        visit=stay.visit,
        topic=stay.topic,
        requests=len(turn.outputs),
        tokens=turn.tokens,
        drafts=counters.drafts,
        accepted=counters.accepted_tokens,
        acceptance_length=counters.acceptance_length,
        adapter_version=counters.adapter_version,
        same_output=same / len(turn.outputs),
        seconds=turn.seconds,
    )
