"""What one replica's requests taught reaches another through aligner and registry; a rollback ends that."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from actors.adoption import Adoption, build_adapter
from actors.aligner import Aligner
from actors.emission import Emission
from actors.engine_loop import EngineLoop, Outlets
from actors.weight_follower import WeightFollower
from evospec.align.trace import Trace
from evospec.align.trace_codec import encode
from evospec.config import Config, RegistryConfig
from evospec.engine.build import load_engine
from evospec.engine.engine import Engine
from evospec.engine.request import Request, SamplingParams
from evospec.errors import EvoSpecError
from evospec.vocab.proposals import Origin
from services.registry import RedisWeightRegistry, open_registry
from tests.integration.registry_kit import decide
from tests.tiny import tiny_folders
from tests.unit.actors.fakes import wait_until

PROMPT = tuple(range(97, 117))


@dataclass(slots=True)
class Replica:
    """An engine on its thread that follows a registry; its requests' texts, and the traces it recorded."""

    name: str
    engine: Engine
    loop: EngineLoop
    follower: WeightFollower
    traces: list[Trace] = field(default_factory=list)
    requests: int = 0

    @classmethod
    def started(cls, name: str, config: Config) -> Replica:
        engine = load_engine(config)
        drafter = engine.drafter
        assert drafter is not None
        loop = EngineLoop(engine)
        adoption = Adoption(
            build=lambda weights: build_adapter(weights, engine.fingerprints, drafter),
            swap=lambda adapter: loop.swap(engine.stage_adapter(adapter)),
        )
        opened = functools.partial(open_registry, config.registry)
        replica = cls(name, engine, loop, WeightFollower(name, opened, adoption, config.registry.poll_s))
        loop.start(Outlets(traces=replica.traces.extend))
        replica.follower.start()
        return replica

    def answer(self, tenant: str, *, trace: bool = True) -> list[int]:
        """With `trace` False this replica learns nothing from it."""
        self.requests += 1
        text: list[int] = []
        ends: list[str | None] = []

        def deliver(item: Emission | EvoSpecError) -> None:
            assert isinstance(item, Emission)
            text.extend(item.output.tokens)
            ends.append(item.output.finish_reason)

        sampling = SamplingParams(max_tokens=80, temperature=1.0, seed=3, ignore_eos=True)
        self.loop.admit(Request(f"{self.name}-{self.requests}", PROMPT, sampling, tenant, trace), deliver)
        wait_until(lambda: bool(ends) and ends[-1] is not None, 60)
        return text

    def statistical(self) -> set[int]:
        """Tokens that are active because they followed in other requests."""
        assert self.engine.vocabulary is not None
        return {slot.token_id for slot in self.engine.vocabulary.slots() if slot.origin is Origin.STATISTICAL}

    def stop(self) -> None:
        self.follower.stop()
        self.loop.stop()


@pytest.fixture
def config(registry_config: RegistryConfig, tmp_path: Path) -> Config:
    folders = tiny_folders(tmp_path)
    model = {"target": str(folders.target), "drafter": str(folders.drafter), "device": "cpu"}
    return Config.model_validate(
        {
            "model": {**model, "dtype": "float32", "threads": 1},
            "engine": {"max_batch": 2, "max_length": 256, "draft_length": 3},
            # Nothing else makes a token active that was not said yet.
            "vocabulary": {"policy": "evospec[statistical]", "capacity": 100, "core": 16},
            "semantic": {"enabled": False},
            "alignment": {"trace_positions": 32, "min_traces": 4, "steps_per_version": 1, "min_gain": -10.0},
            "registry": registry_config.model_copy(update={"poll_s": 0.1}).model_dump(),
            "rollout": {"canary": False},
        }
    )


@pytest.fixture
def replicas(config: Config) -> Iterator[list[Replica]]:
    started = [Replica.started(name, config) for name in ("taught", "fresh", "late")]
    yield started
    for replica in started:
        replica.stop()


@pytest.fixture
def aligner(config: Config, replicas: list[Replica]) -> Iterator[Aligner]:
    opened = Aligner(config, functools.partial(open_registry, config.registry))
    yield opened
    opened.close()


def test_a_replica_profits_from_what_another_one_served(
    replicas: list[Replica], aligner: Aligner, registry: RedisWeightRegistry
) -> None:
    taught, fresh, late = replicas
    texts = [taught.answer("a") for _ in range(6)]
    assert texts == [texts[0]] * 6
    for trace in taught.traces:
        aligner.submit(encode(trace))
    wait_until(lambda: fresh.follower.counts().version >= 1, 120)
    assert fresh.answer("b", trace=False) == texts[0]  # what others taught concerns another tenant
    assert not fresh.statistical()
    assert fresh.answer("a", trace=False) == texts[0]
    assert fresh.statistical() & set(texts[0])

    aligner.close()  # it would publish on
    wait_until(lambda: late.follower.counts().version == registry.rollout().stable)
    decide(registry, "rollback", 0)
    wait_until(lambda: late.follower.counts().version == 0)
    assert late.answer("a", trace=False) == texts[0]
    assert not late.statistical()
