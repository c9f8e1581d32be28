"""`evospec bench decode`: our engine in several settings, and peers, in one process and one run."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

import torch

from evospec.bench.adapters import adapted_engine
from evospec.bench.arms import ArmName, check_peers, parse_arms
from evospec.bench.batches import encode, first_of_each_domain, fitting, longest, make_batches, warm_up_batch
from evospec.bench.exactness import NearTies, OutputCheck, demand_equality
from evospec.bench.ledger import Ledger
from evospec.bench.machine import describe_machine, git_commit
from evospec.bench.measure import Arm, Batch, EngineArm, Turn, interleave
from evospec.bench.memory import PeakMemory, allocated_mb
from evospec.bench.models import BenchModels, engine_config
from evospec.bench.peers import PeerArm, load_assistant, twin
from evospec.bench.prompts import read_prompts
from evospec.bench.results import Breakdown, Results, shown_name
from evospec.bench.roofline import Roofline, Traffic, copy_bandwidth
from evospec.bench.settings import DecodeSettings
from evospec.bench.summary import ArmFacts, Subject, summarise
from evospec.config import AlignmentConfig, Config, EngineConfig, ModelConfig
from evospec.engine.plan import plans_of
from evospec.heap import settle_heap

WARM_UP_ROUNDS = 2
SHORTEST = 16  # a drafter is refused for its reach only once the prompts are known


@dataclass(slots=True)
class DecodeBench:
    """Loaded models, the arms, and the batches to run them on.

    Attributes:
        bandwidth: of the device, bytes per second; None until `warm_up` has measured it.
        ledgers: of the arms that are our engine.
        lessons: what learning policies decode before anything counts.
        longest: positions that a request needs at most.
        breakdowns: by arm and domain; empty until `profile` has run.
        skipped: prompts left out because they do not fit the models with `max_tokens`.
    """

    settings: DecodeSettings
    models: BenchModels
    arms: list[Arm]
    ledgers: list[Ledger]
    batches: list[Batch]
    lessons: list[Batch]
    warm_up_batch: Batch
    skipped: int
    longest: int
    bandwidth: float | None = None
    breakdowns: dict[str, dict[str, Breakdown]] = field(default_factory=dict)

    @classmethod
    def load(cls, settings: DecodeSettings) -> DecodeBench:
        """With models of its own; raises what `load_models` and `of` do."""
        return cls.of(settings, load_models(settings))

    @classmethod
    def of(cls, settings: DecodeSettings, models: BenchModels) -> DecodeBench:
        """Reads prompts and builds the engines.

        Raises:
            EvoSpecError: an arm or prompt file is not usable, or no prompt fits.
        """
        prompts = read_prompts(settings.prompts, split=settings.split, limit=settings.limit)
        encoded = encode(prompts, models.target.tokenizer, settings)
        kept = fitting(encoded, settings.max_tokens, models.room)
        return cls.over(settings, models, make_batches(kept, settings), skipped=len(encoded) - len(kept))

    @classmethod
    def over(
        cls,
        settings: DecodeSettings,
        models: BenchModels,
        batches: list[Batch],
        *,
        skipped: int,
    ) -> DecodeBench:
        """Builds the engines for batches at hand."""
        names = parse_arms(settings.policies, settings.drafting, settings.adapter_names)
        warm_up = warm_up_batch(models.target.tokenizer, settings)
        lessons = _lessons(settings, models)
        most = longest([*batches, *lessons, warm_up])
        config = config_of(settings, max_length=most)
        arms, ledgers = [], []
        for name in names:
            before = allocated_mb(models.target.device)
            arms.append(_arm(name, models, config, settings))
            built = allocated_mb(models.target.device) - before
            ledgers.append(Ledger.of(arms[-1], built))
        own = [ledger for ledger in ledgers if ledger is not None]
        return cls(settings, models, arms, own, batches, lessons, warm_up, skipped, most)

    @property
    def turn_count(self) -> int:
        return len(self.arms) * len(self.batches)

    def warm_up(self) -> None:
        """Runs each arm on a prompt of no domain, which stays out of results and index."""
        for ledger in self.ledgers:
            ledger.prepare(self.longest)
        for _ in interleave(self.arms, [self.warm_up_batch] * WARM_UP_ROUNDS, self._memory()):
            pass
        for ledger in self.ledgers:
            ledger.captures_before = ledger.engine.captures
        self.bandwidth = copy_bandwidth(self.models.target.device)
        settle_heap()

    @property
    def learners(self) -> list[EngineArm]:
        """Arms whose active rows change."""
        own = [arm for arm in self.arms if isinstance(arm, EngineArm)]
        return [arm for arm in own if arm.engine.stats.vocabulary_epoch > 0]

    def learn(self) -> Iterator[Turn]:
        """Decodes the lessons; their turns count for nothing."""
        memory = self._memory()
        for batch in self.lessons:
            for arm in self.learners:
                yield arm.run(batch, memory)

    def turns(self, batches: Sequence[Batch] | None = None) -> Iterator[Turn]:
        """Of all batches, or of these."""
        chosen = self.batches if batches is None else batches
        yield from interleave(self.arms, chosen, self._memory())

    def profile(self) -> None:
        """Breaks cycles down and measures upkeep, after the timed turns: engines are then as the traffic
        has made them, and what is done to them here does no harm."""
        batches = first_of_each_domain(self.batches)
        for ledger in self.ledgers:
            self.breakdowns[ledger.name] = ledger.profile(batches, self.warm_up_batch)
            if self.settings.upkeep:
                ledger.measure_upkeep(self.warm_up_batch, self.longest)

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
        return Results(
            machine=machine,
            git=git_commit(),
            settings=settings,
            runs=tuple(summarise(turns, subject, self._check())),
            arms=tuple(
                ledger.costs(self.models.memory, self.settings.batch, turns) for ledger in self.ledgers
            ),
        )

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
        config = engine_config(name, config_of(self.settings, SHORTEST).engine)
        depths = {str(plan): plan.depth for plan in plans_of(config, drafts=loaded is not None, prunes=True)}
        traffic = Traffic.of(self.models.target, None if loaded is None else loaded.drafter)
        return Roofline(traffic, depths, bandwidth)

    def _check(self) -> OutputCheck | None:
        if self.settings.temperature > 0 or not self.settings.compare:
            return None  # sampled outputs follow the same distribution, but not the same draws
        if self.models.target.dtype == torch.float32:
            return demand_equality
        return NearTies(self.models.target)

    def _memory(self) -> PeakMemory:
        return PeakMemory(self.models.target.device)


def load_models(settings: DecodeSettings) -> BenchModels:
    """Loads what all batch sizes share, after a look at everything that can be wrong without it.

    Raises:
        EvoSpecError: an arm, prompt file, model or drafter is not usable.
    """
    names = parse_arms(settings.policies, settings.drafting, settings.adapter_names)
    for batch in (settings.batch, *settings.more_batches):
        check_peers(names, batch=batch, temperature=settings.temperature, assistant=settings.assistant)
    read_prompts(settings.prompts, split=settings.split, limit=settings.limit)
    drafts = any(name.drafting is not None for name in names)
    return BenchModels.load(config_of(settings, max_length=SHORTEST), drafts=drafts)


def _lessons(settings: DecodeSettings, models: BenchModels) -> list[Batch]:
    lessons = settings.lessons
    if not lessons.files:
        return []
    found = read_prompts(lessons.files, split=lessons.split, limit=lessons.limit)
    kept = fitting(encode(found, models.target.tokenizer, settings), settings.max_tokens, models.room)
    return [
        replace(batch, requests=tuple(replace(each, id=f"warm/{each.id}") for each in batch.requests))
        for batch in make_batches(kept, settings)
    ]


def _arm(name: ArmName, models: BenchModels, config: Config, settings: DecodeSettings) -> Arm:
    if name.peer is not None:
        helper = None
        if name.peer == "assisted" and settings.assistant is not None:
            helper = load_assistant(settings.assistant, models.target)
        target = models.target
        return PeerArm(name, twin(target.model), target.eos_ids, config.engine.max_length, helper)
    if name.adapter is None:
        built = models.engine(name, config)
    else:
        built = adapted_engine(name, models, config, dict(settings.adapters)[name.adapter])
    return EngineArm(name, built, models.retrieval(built, config))


def config_of(settings: DecodeSettings, max_length: int) -> Config:
    """Models, engine and vocabulary of all arms; alignment is off."""
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
