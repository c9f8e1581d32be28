"""Turns and runs made by hand, and an engine whose output and counters are scripted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from evospec.bench.arms import ArmName, Drafting
from evospec.bench.clock import Elapsed
from evospec.bench.measure import Batch, EngineArm, Turn
from evospec.bench.results import Machine, Results, Run
from evospec.engine.request import Request, SamplingParams, StepOutput
from evospec.engine.retrieval import RetrievalPump
from evospec.engine.stats import EngineStats
from evospec.vocab.memory_index import MemoryIndex
from evospec.vocab.semantic import Lookup
from evospec.wire import IndexPoint, TokenHits

MACHINE = Machine(
    cpu="a processor",
    cores=2,
    memory_gb=8.0,
    gpu=None,
    gpus=0,
    gpu_memory_gb=0.0,
    system="Linux x86_64",
    python="3.11.0",
    torch="2.11.0",
    transformers="5.17.0",
)


@dataclass(slots=True)
class ScriptedEngine:
    """Answers every request with `answer`, two tokens a cycle, and logs its name when it steps."""

    name: str
    answer: Sequence[int]
    log: list[str] = field(default_factory=list)
    stats: EngineStats = field(default_factory=EngineStats)
    lookups: list[Lookup] = field(default_factory=list)
    points: list[IndexPoint] = field(default_factory=list)
    hits: dict[str, TokenHits] = field(default_factory=dict)
    captures: int = 0
    _left: dict[str, list[int]] = field(default_factory=dict)

    @property
    def has_requests(self) -> bool:
        return bool(self._left)

    @property
    def has_work(self) -> bool:
        return self.has_requests

    def admit(self, request: Request) -> None:
        self.log.append(self.name)
        self._left[request.id] = list(self.answer)

    def step(self) -> list[StepOutput]:
        outputs = []
        for request_id, tokens in list(self._left.items()):
            now, self._left[request_id] = tokens[:2], tokens[2:]
            if not self._left[request_id]:
                del self._left[request_id]
            self.stats.count_draft(5, len(now) - 1, nodes=5)
            self.stats.emitted_tokens += len(now)
            outputs.append(StepOutput(request_id, tuple(now), 5, len(now) - 1))
        self.stats.count_cycle("chain-5")
        self.stats.active_rows += 10
        return outputs

    def take_lookups(self) -> list[Lookup]:
        taken, self.lookups = self.lookups, []
        return taken

    def take_points(self) -> list[IndexPoint]:
        taken, self.points = self.points, []
        return taken

    def offer_hits(self, request_id: str, hits: TokenHits) -> None:
        self.hits[request_id] = hits


def arm_name(policy: str) -> ArmName:
    return ArmName(policy, policy, None if policy == "plain" else Drafting.parse("chain"))


def scripted_arm(policy: str, answer: Sequence[int], log: list[str] | None = None) -> EngineArm:
    engine = ScriptedEngine(policy, answer, [] if log is None else log)
    return EngineArm(arm_name(policy), engine, RetrievalPump(engine, MemoryIndex(8), 4))


def batch_of(number: int, domain: str, size: int = 1) -> Batch:
    sampling = SamplingParams(max_tokens=8)
    return Batch(
        number, domain, tuple(Request(f"{number}/{row}", (1, 2, 3), sampling) for row in range(size))
    )


def turn_of(policy: str, batch: Batch, output: Sequence[int], seconds: float) -> Turn:
    """A turn of two cycles, a fifth of which went into the prompt and the first token."""
    plan = "plain" if policy == "plain" else "chain-5"
    stats = EngineStats(cycles_per_plan={plan: 2}, cycles=2, draft_seconds=0.004, verify_seconds=0.02)
    if policy != "plain":
        stats.count_draft(5, 3, nodes=5)
        stats.count_draft(5, 1, nodes=5)
        stats.covered_tokens, stats.coverable_tokens = 9, 10
    return Turn(
        arm=policy,
        batch=batch,
        outputs=(tuple(output),),
        elapsed=Elapsed(seconds, None),
        prompt_seconds=seconds / 5,
        first_token_seconds=(seconds / 5,),
        last_token_seconds=(seconds,),
        first_tokens=1,
        counters=stats,
        row_cycles=2000,
        request_cycles=2,
        key_cycles=200,
        peak_memory_mb=100.0,
    )


def run_of(policy: str, domain: str, **changes: object) -> Run:
    values: dict[str, object] = {
        "target": "tiny",
        "drafter": None if policy == "plain" else "drafter",
        "policy": policy,
        "arm": "none",
        "domain": domain,
        "batch": 1,
        "tokens": 100,
        "cycles": 50,
        "tokens_per_s": 30.0,
        "acceptance_length": 1.0 if policy == "plain" else 2.0,
        "acceptance_by_position": () if policy == "plain" else (0.6, 0.4),
        "active_rows": 2000.0,
        "coverage": 0.9,
        "draft_ms": 1.0,
        "verify_ms": 20.0,
        "peak_memory_mb": 512.0,
        "identical_to_plain": True,
        "prompts": 4,
        "seconds": 3.3,
        "tokens_per_s_quartiles": (28.0, 31.0),
        "speedup": 1.0,
        "speedup_quartiles": (0.9, 1.1),
    }
    return Run.model_validate(values | changes)


def results_of(*runs: Run) -> Results:
    return Results(machine=MACHINE, git="unknown", settings={"dtype": "float32", "device": "cpu"}, runs=runs)
