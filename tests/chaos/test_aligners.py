"""Two aligners at once: only the later one publishes."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from actors.aligner import Aligner, AlignerStatus
from actors.names import ALIGNER, NAMESPACE
from actors.publisher import PublisherCounts
from services.registry import open_registry
from tests.chaos.kit.patience import wait_for
from tests.chaos.kit.processes import actor_process
from tests.chaos.kit.rig import Rig
from tests.chaos.kit.versions import HARMLESS, random_adapter

PART = "Aligners"
SOME = 12  # requests, each of which is traced


@contextmanager
def second_aligner(rig: Rig) -> Iterator[Any]:
    """Another aligner of the same configuration, under another name: no replica sends it traces."""
    import ray

    config = rig.cluster.config
    second = ray.remote(Aligner).options(name="second-aligner", namespace=NAMESPACE, num_cpus=0)
    handle: Any = second.remote(config, functools.partial(open_registry, config.registry))
    try:
        yield handle
    finally:
        ray.kill(handle)


@pytest.mark.long
def test_a_second_aligner_fences_the_first(learning_rig: Rig) -> None:
    rig = learning_rig
    title = "a second one joins and fences the first; restarted, that one fences the second"
    with rig.scenario(PART, title, harmless=True) as scenario, rig.registry() as registry:
        rig.promote_next(registry)

        def fenced() -> bool:
            # A candidate that is being tried keeps it from the attempt that shows it.
            rig.let_through(registry)
            return publisher_of(rig.aligner()).superseded

        scenario.start_clock()
        with second_aligner(rig) as second:
            first = rig.epoch()
            wait_for(lambda: publisher_of(status_of(second)).epoch > first)
            wait_for(fenced)
            scenario.recovered("from the start of the second until the first has stopped publishing")
            published = registry.newest_version()
            scenario.load.served(SOME)
            assert registry.newest_version() == published
            actor_process(ALIGNER).kill()
            assert rig.promote_next(registry) > published
            wait_for(lambda: publisher_of(status_of(second)).superseded)


@pytest.mark.long
def test_an_aligner_outlives_a_version_that_it_cannot_train_on(rig: Rig) -> None:
    title = "restarted while the stable version adapts layers that it does not train"
    with rig.scenario(PART, title, harmless=True) as scenario, rig.publisher() as publisher:
        weights = random_adapter(rig.models.drafter(), HARMLESS, 401, fusion=True)
        foreign = publisher.publish(weights)
        wait_for(lambda: rig.run(foreign))
        scenario.start_clock()
        rig.start_learning()
        scenario.recovered("until it is back in the registry")
        assert rig.promote_next(publisher.registry) > foreign


def status_of(aligner: Any) -> AlignerStatus:
    import ray

    status: AlignerStatus = ray.get(aligner.status.remote())
    return status


def publisher_of(status: AlignerStatus | None) -> PublisherCounts:
    return PublisherCounts() if status is None else status.publisher
