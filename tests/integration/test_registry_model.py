"""Random histories: real servers and a plain Python model of the rules agree at every step."""

from __future__ import annotations

from contextlib import closing
from dataclasses import dataclass

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from redis import Redis

from evospec.errors import DecisionRefusedError, StalePublisherError
from evospec.wire import Decision, VersionState
from services.registry import RedisWeightRegistry
from services.valkey import EmbeddedValkey
from tests.integration.registry_kit import manifest_of, states
from tests.integration.registry_model import KEEP, RolloutModel

CONTENTS = [f"content {number}" for number in range(12)]


@dataclass(frozen=True, slots=True)
class Publish:
    """`ahead` of the newest version, with an epoch `behind` the registry's."""

    ahead: int
    behind: int
    state: VersionState
    content: str


@dataclass(frozen=True, slots=True)
class Acquire:
    pass


@dataclass(frozen=True, slots=True)
class Lose:
    """The blob of a version vanishes."""

    back: int


@dataclass(frozen=True, slots=True)
class Decide:
    """About a version `back` from the newest, or the base."""

    kind: str
    back: int | None
    replicas: frozenset[str]


Step = Publish | Acquire | Lose | Decide

publications = st.builds(
    Publish,
    ahead=st.sampled_from([1, 1, 1, 2, 0, -1]),
    behind=st.sampled_from([0, 0, 0, 0, 0, 1]),
    state=st.sampled_from(["candidate", "candidate", "stable"]),
    content=st.sampled_from(CONTENTS),
)
decisions = st.builds(
    Decide,
    kind=st.sampled_from(["canary", "promote", "revoke", "rollback"]),
    back=st.sampled_from([0, 0, 1, 2, 3, 4, None]),
    replicas=st.frozensets(st.sampled_from("abc"), min_size=1, max_size=2),
)
rare = st.just(Acquire()) | st.builds(Lose, back=st.integers(0, 3))
histories = st.lists(publications | decisions | decisions | rare, min_size=10, max_size=30)


class Trial:
    """Takes each step on a server and in the model."""

    def __init__(self, registry: RedisWeightRegistry, raw: Redis) -> None:
        self.registry = registry
        self.raw = raw
        self.model = RolloutModel()

    def take(self, step: Step) -> None:
        match step:
            case Publish():
                self._publish(step)
            case Decide():
                self._decide(step)
            case Acquire():
                self.model.epoch += 1
                assert self.registry.acquire_epoch() == self.model.epoch
            case Lose(back):
                version = self.model.newest - back
                self.raw.delete(f"test:w:{version}")
                if version in self.model.kept:
                    self.model.kept[version].fetchable = False
        self.compare()

    def compare(self) -> None:
        assert self.registry.rollout() == self.model.rollout
        assert states(self.registry) == self.model.states
        assert self.registry.newest_version() == self.model.newest
        assert len(self.registry.events(100)) == self.model.events

    def _publish(self, step: Publish) -> None:
        version = max(self.model.newest + step.ahead, 1)
        epoch = max(self.model.epoch - step.behind, 1)
        blob = step.content.encode()
        manifest = manifest_of(version, blob, epoch).model_copy(update={"state": step.state})
        if self.model.is_stale(version, epoch):
            with pytest.raises(StalePublisherError):
                self.registry.publish(manifest, blob)
        elif self.model.publish(version, epoch, step.state, step.content):
            self.registry.publish(manifest, blob)
        else:
            with pytest.raises(DecisionRefusedError):
                self.registry.publish(manifest, blob)

    def _decide(self, step: Decide) -> None:
        version = 0 if step.back is None else max(self.model.newest - step.back, 0)
        decision = Decision.model_validate(
            {"kind": step.kind, "version": version, "by": "test", "replicas": tuple(sorted(step.replicas))}
        )
        if self.model.decide(decision):
            self.registry.decide(decision)
        else:
            with pytest.raises(DecisionRefusedError):
                self.registry.decide(decision)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(history=histories)
def test_servers_agree_with_the_model(redis_server: EmbeddedValkey, raw: Redis, history: list[Step]) -> None:
    raw.flushall()
    with closing(RedisWeightRegistry(redis_server.url, namespace="test", keep_versions=KEEP)) as registry:
        trial = Trial(registry, raw)
        for step in history:
            trial.take(step)
