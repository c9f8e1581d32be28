"""`evospec bench decode`: vocabulary policies against plain decoding, in one process and one run."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

import torch

from evospec.bench.exactness import NearTies, OutputCheck, demand_equality
from evospec.bench.machine import describe_machine, git_commit
from evospec.bench.measure import Arm, Batch, Turn, interleave
from evospec.bench.memory import PeakMemory
from evospec.bench.prompts import Prompt, read_prompts
from evospec.bench.results import PLAIN, Results, shown_name
from evospec.bench.settings import DecodeSettings, with_plain
from evospec.bench.summary import Subject, summarise
from evospec.config import (
    AlignmentConfig,
    Config,
    EngineConfig,
    ModelConfig,
)
from evospec.engine.build import build_engine, load_own_drafter, load_target
from evospec.engine.request import Request, SamplingParams
from evospec.engine.retrieval import RetrievalPump
from evospec.errors import EvoSpecError
from evospec.models.chat import encode_prompt
from evospec.models.drafter_store import LoadedDrafter
from evospec.models.target import Target
from evospec.vocab.memory_index import MemoryIndex

WARM_UP = "List a few everyday objects, and say in one sentence each what they are good for."
WARM_UP_ROUNDS = 2
WARM_UP_TOKENS = 24
_SHORTEST = 16  # a drafter is refused for its reach only once the prompts are known


@dataclass(frozen=True, slots=True)
class EncodedPrompt:
    prompt: Prompt
    token_ids: tuple[int, ...]


@dataclass(slots=True)
class DecodeBench:
    """Loaded models, one engine per policy, and the batches to run them on.

    Attributes:
        skipped: prompts left out because they do not fit the models with `max_tokens`.
    """

    settings: DecodeSettings
    target: Target
    arms: list[Arm]
    batches: list[Batch]
    warm_up_batch: Batch
    skipped: int

    @classmethod
    def load(cls, settings: DecodeSettings) -> DecodeBench:
        """Reads prompts, loads the models once and builds the engines.

        Raises:
            EvoSpecError: a policy, prompt file, model or drafter is not usable.
        """
        policies = with_plain(settings.policies)
        prompts = read_prompts(settings.prompts, split=settings.split, limit=settings.limit)
        config = _config(settings, max_length=_SHORTEST)
        target = load_target(config)
        loaded = load_own_drafter(config, target) if policies != [PLAIN] else None
        encoded = [
            EncodedPrompt(prompt, encode_prompt(target.tokenizer, prompt.text, chat=settings.chat))
            for prompt in prompts
        ]
        fitting = _fitting(encoded, settings.max_tokens, _room(target, loaded))
        batches = make_batches(fitting, settings)
        warm_up = _warm_up_batch(target, settings)
        longest = max(_longest(batch) for batch in (*batches, warm_up))
        config = _config(settings, max_length=longest)
        arms = [_arm(policy, config, target, loaded) for policy in policies]
        return cls(settings, target, arms, batches, warm_up, skipped=len(encoded) - len(fitting))

    @property
    def turn_count(self) -> int:
        return len(self.arms) * len(self.batches)

    def warm_up(self) -> None:
        """Runs each engine on a prompt of no domain, which stays out of results and index."""
        for _ in interleave(self.arms, [self.warm_up_batch] * WARM_UP_ROUNDS, self._memory()):
            pass

    def turns(self) -> Iterator[Turn]:
        yield from interleave(self.arms, self.batches, self._memory())

    def results(self, turns: Sequence[Turn]) -> Results:
        """Checks every output against plain decoding's, then sums up."""
        settings = self.settings.described()
        settings["policies"] = [arm.policy for arm in self.arms]
        settings["dtype"] = str(self.target.dtype).removeprefix("torch.")
        settings["device"] = self.target.device.type
        settings["skipped_prompts"] = self.skipped
        subject = Subject(
            target=shown_name(self.settings.target),
            drafter=shown_name(self.settings.drafter),
            batch=self.settings.batch,
        )
        runs = summarise(turns, subject, self._check())
        return Results(machine=describe_machine(), git=git_commit(), settings=settings, runs=tuple(runs))

    def _check(self) -> OutputCheck | None:
        if self.settings.temperature > 0:
            return None  # sampled outputs follow the same distribution, but not the same draws
        if self.target.dtype == torch.float32:
            return demand_equality
        return NearTies(self.target)

    def _memory(self) -> PeakMemory:
        return PeakMemory(self.target.device)


def make_batches(prompts: Sequence[EncodedPrompt], settings: DecodeSettings) -> list[Batch]:
    """Batches of one domain each, in the order of the prompts."""
    batches: list[Batch] = []
    for domain, group in groupby(enumerate(prompts), key=lambda item: item[1].prompt.domain):
        members = list(group)
        for start in range(0, len(members), settings.batch):
            requests = tuple(
                # Ids of different files may be equal; numbered ones are not.
                Request(f"{number}:{encoded.prompt.id}", encoded.token_ids, _sampling(settings, number))
                for number, encoded in members[start : start + settings.batch]
            )
            batches.append(Batch(len(batches), domain, requests))
    return batches


def _sampling(settings: DecodeSettings, number: int) -> SamplingParams:
    return SamplingParams(
        temperature=settings.temperature, seed=settings.seed + number, max_tokens=settings.max_tokens
    )


def _config(settings: DecodeSettings, max_length: int) -> Config:
    return Config(
        model=ModelConfig(
            target=settings.target,
            drafter=settings.drafter,
            device=settings.device,
            dtype=settings.dtype,
            threads=settings.threads,
        ),
        engine=EngineConfig(
            max_batch=settings.batch, max_length=max_length, draft_length=settings.draft_length
        ),
        vocabulary=settings.vocabulary,
        alignment=AlignmentConfig(enabled=False),
    )


def _room(target: Target, loaded: LoadedDrafter | None) -> int:
    """Positions that both models reach."""
    reach = loaded.drafter.config.max_positions if loaded is not None else target.max_length
    return min(target.max_length, reach)


def _fitting(encoded: Sequence[EncodedPrompt], max_tokens: int, room: int) -> list[EncodedPrompt]:
    fitting = [one for one in encoded if len(one.token_ids) + max_tokens <= room]
    if not fitting:
        raise EvoSpecError(
            f"no prompt fits the models' {room} positions with {max_tokens} tokens to generate: "
            "lower --max-tokens or shorten the prompts"
        )
    return fitting


def _warm_up_batch(target: Target, settings: DecodeSettings) -> Batch:
    prompt_ids = encode_prompt(target.tokenizer, WARM_UP, chat=settings.chat)
    sampling = SamplingParams(temperature=settings.temperature, max_tokens=WARM_UP_TOKENS)
    requests = tuple(
        Request(f"warm-up/{row}", prompt_ids, sampling, trace=False) for row in range(settings.batch)
    )
    return Batch(-1, "warm-up", requests)


def _longest(batch: Batch) -> int:
    return max(len(request.prompt_ids) + request.sampling.max_tokens for request in batch.requests)


def _arm(policy: str, config: Config, target: Target, loaded: LoadedDrafter | None) -> Arm:
    if policy != PLAIN:
        vocabulary = config.vocabulary.model_copy(update={"policy": policy})
        config = config.model_copy(update={"vocabulary": vocabulary})
    engine = build_engine(config, target, None if policy == PLAIN else loaded)
    index = MemoryIndex(config.semantic.max_points)
    return Arm(policy, engine, RetrievalPump(engine, index, config.semantic.neighbours))
