"""What a plan is asked for: a load, what serves it, and what there is."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from evospec.config import Config
from services.plan.accelerators import H200, Accelerator
from services.plan.errors import PlanError
from services.plan.figures import ACCEPTANCE
from services.plan.shapes import ModelShape

IndexKind = Literal["server", "embedded"]
MOST_REPLICAS = 1_000


@dataclass(frozen=True, slots=True)
class Load:
    """Traffic.

    Attributes:
        requests_per_s: on average.
        prompt_tokens, answer_tokens: of a request, means.
        burstiness: squared coefficient of variation of the gaps between requests; 1: Poisson.
        variation: the same of how long requests take.
    """

    requests_per_s: float
    prompt_tokens: float
    answer_tokens: float
    burstiness: float = 1.0
    variation: float = 1.0

    def __post_init__(self) -> None:
        for name in ("requests_per_s", "prompt_tokens", "answer_tokens", "burstiness"):
            if not 0 < getattr(self, name) < float("inf"):
                raise PlanError(f"{name} is {getattr(self, name):g}: it must be above 0 and finite")
        if not 0 <= self.variation < float("inf"):
            raise PlanError(f"variation is {self.variation:g}: it must not be below 0")


@dataclass(frozen=True, slots=True)
class Hardware:
    """What there is.

    Attributes:
        gpus: at most; None: as many as it takes.
        aligner_gpu: where the aligner trains; None: a GPU of the same kind.
        network_gbit: of each node, 1e9 bits a second.
        index: a Qdrant server, or the one that EvoSpec embeds.
    """

    gpu: Accelerator = H200
    gpus: int | None = None
    max_replicas: int = MOST_REPLICAS
    aligner_gpu: Accelerator | None = None
    network_gbit: float = 25.0
    index: IndexKind = "server"

    def __post_init__(self) -> None:
        if self.max_replicas < 1 or (self.gpus is not None and self.gpus < 1):
            raise PlanError("a plan needs at least one GPU and one replica")
        if not self.network_gbit > 0:
            raise PlanError(f"network_gbit is {self.network_gbit:g}: it must be above 0")

    @property
    def trainer(self) -> Accelerator:
        return self.aligner_gpu or self.gpu

    @property
    def network_mb_s(self) -> float:
        return self.network_gbit * 1e3 / 8


@dataclass(frozen=True, slots=True)
class Question:
    """All that a plan follows from.

    Attributes:
        acceptance: τ, tokens a cycle.
        batch: requests together on a replica; None: what takes the fewest replicas.
        utilisation: of a replica's most, on average; what is left takes up bursts.
        max_wait_s: 95 % of the requests wait no longer for a replica.
        traced: share of the requests that did not opt out of learning.
    """

    load: Load
    shape: ModelShape
    hardware: Hardware = field(default_factory=Hardware)
    config: Config = field(default_factory=Config)
    acceptance: float = ACCEPTANCE.value
    batch: int | None = None
    utilisation: float = 0.7
    max_wait_s: float = 1.0
    traced: float = 1.0

    def __post_init__(self) -> None:
        if not 1 <= self.acceptance <= self.config.engine.draft_length + 1:
            raise PlanError(
                f"acceptance is {self.acceptance:g}: chains of {self.config.engine.draft_length} emit 1 to "
                f"{self.config.engine.draft_length + 1} tokens a cycle"
            )
        if not 0 < self.utilisation < 1:
            raise PlanError(f"utilisation is {self.utilisation:g}: it must lie between 0 and 1")
        if not 0 <= self.traced <= 1:
            raise PlanError(f"traced is {self.traced:g}: it must lie between 0 and 1")
        if not self.max_wait_s > 0:
            raise PlanError(f"max_wait is {self.max_wait_s:g}: it must be above 0")
        if self.batch is not None and self.batch < 1:
            raise PlanError(f"batch is {self.batch}: it must be at least 1")
        longest = self.load.prompt_tokens + self.load.answer_tokens
        if longest > self.config.engine.max_length:
            raise PlanError(
                f"prompts and answers have {longest:g} tokens on average, engine.max_length is "
                f"{self.config.engine.max_length}: raise it in the configuration"
            )
