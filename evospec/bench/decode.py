"""`evospec bench decode`: our engine in several settings, and peers, in one process and one run."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch

from evospec.bench.arms import ArmName, check_peers, parse_arms
from evospec.bench.batches import encode, first_of_each_domain, fitting, longest, make_batches, warm_up_batch
from evospec.bench.exactness import NearTies, OutputCheck, demand_equality
from evospec.bench.machine import describe_machine, git_commit
from evospec.bench.measure import Arm, Batch, EngineArm, Turn, interleave
from evospec.bench.memory import PeakMemory
from evospec.bench.peers import PeerArm, load_assistant, twin
from evospec.bench.profile import profile
from evospec.bench.prompts import read_prompts
from evospec.bench.results import PLAIN, Breakdown, Results, shown_name
from evospec.bench.roofline import Roofline, Traffic, copy_bandwidth
from evospec.bench.settings import DecodeSettings
from evospec.bench.summary import ArmFacts, Subject, summarise
from evospec.config import AlignmentConfig, Config, EngineConfig, ModelConfig
from evospec.engine.build import build_engine, load_own_drafter, load_target
from evospec.engine.engine import Engine
from evospec.engine.plan import plans_of
from evospec.engine.retrieval import RetrievalPump
from evospec.models.drafter_store import LoadedDrafter
from evospec.models.target import Target
from evospec.vocab.memory_index import MemoryIndex

WARM_UP_ROUNDS = 2
_SHORTEST = 16  # a drafter is refused for its reach only once the prompts are known


@dataclass(slots=True)
class DecodeBench:
    """Loaded models, the arms, and the batches to run them on.

    Attributes:
        bandwidth: of the device, bytes per second; None until `warm_up` has measured it.
        breakdowns: by arm and domain; empty until `profile` has run.
        skipped: prompts left out because they do not fit the models with `max_tokens`.
    """

    settings: DecodeSettings
    models: _Models
    arms: list[Arm]
    batches: list[Batch]
    warm_up_batch: Batch
    skipped: int
    bandwidth: float | None = None
    breakdowns: dict[str, dict[str, Breakdown]] = field(default_factory=dict)

    @classmethod
    def load(cls, settings: DecodeSettings) -> DecodeBench:
        """Reads prompts, loads the models once and builds the engines.

        Raises:
            EvoSpecError: an arm, prompt file, model or drafter is not usable.
        """
        names = parse_arms(settings.policies, settings.drafting)
        check_peers(
            names, batch=settings.batch, temperature=settings.temperature, assistant=settings.assistant
        )
        prompts = read_prompts(settings.prompts, split=settings.split, limit=settings.limit)
        models = _Models.load(settings, names)
        encoded = encode(prompts, models.target.tokenizer, settings)
        kept = fitting(encoded, settings.max_tokens, models.room)
        batches = make_batches(kept, settings)
        warm_up = warm_up_batch(models.target.tokenizer, settings)
        config = _config(settings, max_length=longest([*batches, warm_up]))
        arms = [models.arm(name, config, settings.assistant) for name in names]
        return cls(settings, models, arms, batches, warm_up, skipped=len(encoded) - len(kept))

    @property
    def turn_count(self) -> int:
        return len(self.arms) * len(self.batches)

    def warm_up(self) -> None:
        """Runs each arm on a prompt of no domain, which stays out of results and index."""
        for arm in self.arms:
            if isinstance(arm, EngineArm) and isinstance(arm.engine, Engine):
                arm.engine.prepare()
        for _ in interleave(self.arms, [self.warm_up_batch] * WARM_UP_ROUNDS, self._memory()):
            pass
        self.bandwidth = copy_bandwidth(self.models.target.device)

    def turns(self) -> Iterator[Turn]:
        yield from interleave(self.arms, self.batches, self._memory())

    def profile(self) -> None:
        """Breaks cycles down, after the timed turns: engines are then as the traffic has made them."""
        device = self.models.target.device
        for arm in self.arms:
            if not isinstance(arm, EngineArm) or not isinstance(arm.engine, Engine):
                continue
            profile(arm.engine, arm.retrieval, [self.warm_up_batch], device)
            found = self.breakdowns.setdefault(arm.name.text, {})
            for domain, batch in first_of_each_domain(self.batches).items():
                breakdown = profile(arm.engine, arm.retrieval, [batch], device)
                if breakdown is not None:
                    found[domain] = breakdown

    def results(self, turns: Sequence[Turn]) -> Results:
        """Checks every output against plain decoding's, then sums up."""
        target = self.models.target
        settings = self.settings.described()
        settings["policies"] = [arm.name.text for arm in self.arms]
        settings["dtype"] = str(target.dtype).removeprefix("torch.")
        settings["device"] = target.device.type
        settings["skipped_prompts"] = self.skipped
        facts = {arm.name.text: self._facts(arm.name) for arm in self.arms}
        subject = Subject(shown_name(self.settings.target), self.settings.batch, facts)
        copying = None if self.bandwidth is None else self.bandwidth / 1e9
        machine = describe_machine().model_copy(update={"copy_gb_per_s": copying})
        runs = summarise(turns, subject, self._check())
        return Results(machine=machine, git=git_commit(), settings=settings, runs=tuple(runs))

    def _facts(self, name: ArmName) -> ArmFacts:
        if name.peer is not None:
            drafter = self.settings.assistant if name.peer == "assisted" else None
            return ArmFacts(name, drafter=None if drafter is None else shown_name(drafter))
        return ArmFacts(
            name,
            drafter=None if name.drafting is None else shown_name(self.settings.drafter),
            roofline=None if self.bandwidth is None else self._roofline(name, self.bandwidth),
            breakdowns=self.breakdowns.get(name.text, {}),
        )

    def _roofline(self, name: ArmName, bandwidth: float) -> Roofline:
        loaded = None if name.drafting is None else self.models.drafter
        config = _engine_config(name, _config(self.settings, _SHORTEST).engine)
        depths = {str(plan): plan.depth for plan in plans_of(config, drafts=loaded is not None)}
        traffic = Traffic.of(self.models.target, None if loaded is None else loaded.drafter)
        return Roofline(traffic, depths, bandwidth)

    def _check(self) -> OutputCheck | None:
        if self.settings.temperature > 0:
            return None  # sampled outputs follow the same distribution, but not the same draws
        if self.models.target.dtype == torch.float32:
            return demand_equality
        return NearTies(self.models.target)

    def _memory(self) -> PeakMemory:
        return PeakMemory(self.models.target.device)


@dataclass(slots=True)
class _Models:
    """What the arms share: every weight is loaded once."""

    target: Target
    drafter: LoadedDrafter | None

    @classmethod
    def load(cls, settings: DecodeSettings, names: Sequence[ArmName]) -> _Models:
        config = _config(settings, max_length=_SHORTEST)
        target = load_target(config)
        drafts = any(name.drafting is not None for name in names)
        return cls(target, load_own_drafter(config, target) if drafts else None)

    @property
    def room(self) -> int:
        """Positions that all models reach."""
        reach = self.target.max_length
        return reach if self.drafter is None else min(reach, self.drafter.drafter.config.max_positions)

    def arm(self, name: ArmName, config: Config, assistant: str | None) -> Arm:
        if name.peer is not None:
            return self._peer(name, config.engine.max_length, assistant)
        engine = _engine_config(name, config.engine)
        vocabulary = config.vocabulary
        if name.policy != PLAIN:
            vocabulary = vocabulary.model_copy(update={"policy": name.policy})
        own = config.model_copy(update={"engine": engine, "vocabulary": vocabulary})
        built = build_engine(own, self.target, None if name.drafting is None else self.drafter)
        index = MemoryIndex(config.semantic.max_points)
        return EngineArm(name, built, RetrievalPump(built, index, config.semantic.neighbours))

    def _peer(self, name: ArmName, positions: int, assistant: str | None) -> PeerArm:
        helper = None
        if name.peer == "assisted" and assistant is not None:
            helper = load_assistant(assistant, self.target)
        return PeerArm(name, twin(self.target.model), self.target.eos_ids, positions, helper)


def _engine_config(name: ArmName, config: EngineConfig) -> EngineConfig:
    return config if name.drafting is None else name.drafting.apply(config)


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
