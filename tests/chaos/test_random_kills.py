"""Everything that can die does, in random order, under load, for a time that can be chosen."""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Iterator

import numpy as np
import pytest

from actors.names import ALIGNER, INDEX_HOST, ROLLOUT_CONTROLLER
from tests.chaos.kit.patience import wait_for
from tests.chaos.kit.processes import actor_processes
from tests.chaos.kit.rig import Rig

PART = "Everything killed (SIGKILL), in random order"
MINUTES = "EVOSPEC_CHAOS_MINUTES"
DEFAULT_MINUTES = 0.5
LONGEST_PAUSE_S = 6.0  # between two kills
SEED = 7
REGISTRY, TOKEN_INDEX = "the registry's server", "the token index's server (connections refused)"
ACTORS = {
    "a decoding replica": "#DecodingReplica#",
    "the gateway": "#Gateway#",
    "Ray Serve's HTTP proxy": "SERVE_PROXY_ACTOR",
    "Ray Serve's controller": "SERVE_CONTROLLER_ACTOR",
    "the aligner": ALIGNER,
    "the rollout controller": ROLLOUT_CONTROLLER,
    "the owner of the token index": INDEX_HOST,
}

pytestmark = pytest.mark.timeout(3600)  # the time that was chosen, and more


def victims(random: np.random.Generator) -> Iterator[str]:
    """Each once, in random order; then again."""
    everyone = [*ACTORS, REGISTRY, TOKEN_INDEX]
    while True:
        for position in random.permutation(len(everyone)):
            yield everyone[position]


def kill(rig: Rig, victim: str, random: np.random.Generator) -> bool:
    """False when it was not there: it may still be on its way back from the last time."""
    if victim == REGISTRY:
        rig.server.kill()
    elif victim == TOKEN_INDEX:
        rig.qdrant_proxy.refuse()
    else:
        processes = actor_processes(ACTORS[victim])
        if not processes:
            return False
        try:
            processes[random.integers(len(processes))].kill()
        except ProcessLookupError:  # Serve has ended it meanwhile
            return False
    return True


@pytest.mark.long
def test_everything_is_killed_in_random_order(learning_rig: Rig) -> None:
    rig, random = learning_rig, np.random.default_rng(SEED)
    minutes = float(os.environ.get(MINUTES, DEFAULT_MINUTES))
    kills: Counter[str] = Counter()
    with rig.scenario(PART, f"for {minutes:g} minutes", cuts=True) as scenario:
        end = time.monotonic() + 60 * minutes
        for victim in victims(random):
            if time.monotonic() > end:
                break
            kills[victim] += kill(rig, victim, random)
            time.sleep(random.uniform(0, LONGEST_PAUSE_S))
            rig.server.restart()
            rig.qdrant_proxy.restore()
        scenario.start_clock()
        with rig.registry() as registry:
            wait_for(lambda: rig.settled(registry))
            scenario.recovered(
                "from the last kill until all replicas are there, on the version that is wanted"
            )
            rig.promote_next(registry)  # and the aligner's versions still reach them
        scenario.notes.append(
            "killed: " + ", ".join(f"{victim} {count} x" for victim, count in kills.items())
        )
