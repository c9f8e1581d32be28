"""Processes die without a word, under load."""

from __future__ import annotations

import pytest

from actors.names import ALIGNER, INDEX_HOST
from tests.chaos.kit.patience import wait_for
from tests.chaos.kit.processes import actor_process, actor_processes
from tests.chaos.kit.rig import Rig

PART = "Processes killed (SIGKILL)"


def test_a_replica_is_killed(rig: Rig) -> None:
    """What it had begun breaks off with an error that says so; the rest is given to another one."""
    with rig.scenario(PART, "a decoding replica") as scenario, rig.publisher() as publisher:
        version = publisher.publish(rig.harmless_version(301))
        wait_for(lambda: rig.run(version))
        before = rig.names()
        actor_process(min(before)).kill()
        scenario.start_clock()
        wait_for(lambda: rig.complete() and rig.names() != before)
        scenario.recovered("until another one takes traffic")
        (fresh,) = (status for status in rig.replicas() if status.replica not in before)
        # Whoever asks it first meets the version of now.
        assert fresh.engine.adapter_version == version
        assert set(fresh.arms) <= {version}


def test_the_aligner_is_killed(learning_rig: Rig) -> None:
    rig = learning_rig
    with rig.scenario(PART, "the aligner", harmless=True) as scenario, rig.registry() as registry:
        stable = rig.promote_next(registry)
        steps = registry.fetch(stable).manifest.metrics["steps"]
        epoch = rig.epoch()
        actor_process(ALIGNER).kill()
        scenario.start_clock()
        wait_for(lambda: rig.epoch() > epoch)
        wait_for(lambda: resumed_steps(rig) >= steps)
        scenario.recovered("until another one goes on from its training state")
        assert rig.promote_next(registry) > stable


def resumed_steps(rig: Rig) -> int:
    """Steps of earlier lives that the aligner goes on from."""
    status = rig.aligner()
    return 0 if status is None else status.trainer.steps - status.progress.steps


@pytest.mark.long
def test_the_index_host_is_killed(rig: Rig) -> None:
    with rig.scenario(PART, "the owner of the token index", harmless=True) as scenario:
        wait_for(lambda: _hits(rig) > 0)
        actor_process(INDEX_HOST).kill()
        scenario.start_clock()
        before = _hits(rig)
        wait_for(lambda: _hits(rig) > before)
        scenario.recovered("until a look-up finds something")


@pytest.mark.long
@pytest.mark.parametrize(
    ("title", "name"),
    [
        ("the gateway", "#Gateway#"),
        ("Ray Serve's HTTP proxy", "SERVE_PROXY_ACTOR"),
        ("Ray Serve's controller", "SERVE_CONTROLLER_ACTOR"),
    ],
)
def test_what_stands_between_client_and_replica_is_killed(rig: Rig, title: str, name: str) -> None:
    with rig.scenario(PART, title, cuts=True) as scenario:
        process = actor_process(name)
        process.kill()
        scenario.start_clock()
        scenario.load.served(1)
        wait_for(lambda: any(process.pid != one.pid for one in actor_processes(name)))
        scenario.load.served(1)
        scenario.recovered("until another one is there, and a request complete")
        wait_for(rig.complete)
    # Whoever is still there to answer says when to ask again.
    assert not [cause for cause in scenario.load.stop().retried if "without Retry-After" in cause]


def _hits(rig: Rig) -> int:
    return sum(status.index.hits for status in rig.replicas())
