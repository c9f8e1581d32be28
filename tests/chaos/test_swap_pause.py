"""What a version's arrival costs a request in flight, on one engine.

Measured at the engine's loop rather than through HTTP, where the pauses of eight replicas on few
cores would drown it. Everything between registry and engine is real: a Valkey server, the follower
that fetches, checks and stages, and the swap between two cycles.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from actors.adoption import Adoption, build_adapter
from actors.engine_loop import EngineLoop, Outlets
from actors.weight_follower import WeightFollower
from evospec.config import RegistryConfig
from evospec.engine.build import load_engine
from services.registry import open_registry
from services.valkey import EmbeddedValkey
from tests.chaos.kit.known_prompts import KnownPrompt
from tests.chaos.kit.learned_models import wide_models
from tests.chaos.kit.patience import wait_for
from tests.chaos.kit.pauses import Pauses, pauses_of
from tests.chaos.kit.record import ScenarioRecord, publish
from tests.chaos.kit.remote_publisher import RemotePublisher
from tests.chaos.kit.rig import rig_config
from tests.chaos.kit.versions import HARMLESS, random_adapter

PART = "Rollout"
SWAPS = 200
RANK = 256
ADAPTERS = 4  # taken in turn
TOKENS = 180
QUIET_PAUSES = 20  # between two swaps
LOOK_S = 0.02  # not often: whoever looks takes the interpreter from the engine
CYCLES_ALLOWED = 2.0

pytestmark = pytest.mark.long


@dataclass(frozen=True, slots=True)
class Decoding:
    """An engine on its thread, following a registry."""

    loop: EngineLoop
    follower: WeightFollower
    publisher: RemotePublisher
    prompt: KnownPrompt


@pytest.fixture
def decoding(tmp_path: Path) -> Iterator[Decoding]:
    torch.set_num_threads(1)
    models = wide_models(tmp_path, prompts=1, tokens=TOKENS)
    engine = load_engine(rig_config(models, 1))
    drafter = engine.drafter
    assert drafter is not None
    files = [tmp_path / f"{seed}.safetensors" for seed in range(ADAPTERS)]
    for seed, file in enumerate(files):
        save_file(random_adapter(drafter, HARMLESS, seed, RANK), file)
    loop = EngineLoop(engine)
    adoption = Adoption(
        build=lambda weights: build_adapter(weights, engine.fingerprints, drafter),
        swap=lambda adapter: loop.swap(engine.stage_adapter(adapter)),
    )
    with EmbeddedValkey() as server:
        settings = RegistryConfig(url=server.url)
        follower = WeightFollower("replica", functools.partial(open_registry, settings), adoption, poll_s=1.0)
        loop.start(Outlets())
        follower.start()
        with RemotePublisher(settings, engine.fingerprints, files) as publisher:
            yield Decoding(loop, follower, publisher, models.prompts[0])
        follower.stop()
        loop.stop()


def swap_often(decoding: Decoding, pauses: Pauses) -> list[float]:
    """Publishes versions until enough swaps fell between two outputs; returns pauses of times between.

    Other programs' noise is then the same for both.
    """

    def arrived(version: int) -> bool:
        return decoding.follower.counts().version == version

    def enough(since: int) -> bool:
        return len(pauses.plain) >= since + QUIET_PAUSES

    quiet: list[float] = []
    while len(pauses.swapped) < SWAPS:
        version = decoding.publisher.publish()
        wait_for(functools.partial(arrived, version), every_s=LOOK_S)
        since = len(pauses.plain)
        wait_for(functools.partial(enough, since), every_s=LOOK_S)
        quiet += pauses.plain[since:]
    return quiet


def test_a_swap_hardly_pauses_a_request(decoding: Decoding) -> None:
    with pauses_of(decoding.loop, decoding.prompt) as pauses:
        quiet = swap_often(decoding, pauses)
    cycle = float(np.median(quiet))
    without, during = np.quantile(quiet, (0.5, 0.99)), np.quantile(pauses.swapped, (0.5, 0.99))
    publish(
        ScenarioRecord(
            part=PART,
            scenario=f"{len(pauses.swapped)} swaps of 5 MB into one engine in the middle of requests",
            sent=pauses.requests,
            failed=0,
            lost=0,
            retried={},
            compared=pauses.tokens,
            wrong=pauses.wrong,
            took=float(during[1] - without[1]) / cycle,
            unit="cycles",
            what="added by a swap to the pause between two outputs, 99th percentile against that without",
            bar=CYCLES_ALLOWED,
            notes=(
                f"a cycle takes {1e3 * cycle:.2f} ms; pauses with a swap: median {during[0] / cycle:.2f} "
                f"cycles, 99th percentile {during[1] / cycle:.2f}; without: {without[0] / cycle:.2f} and "
                f"{without[1] / cycle:.2f}",
            ),
        )
    )
    assert pauses.wrong == 0
