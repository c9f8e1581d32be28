"""The dashboard over a staged cluster: no Ray, no model, and values that move as traffic would move them."""

from __future__ import annotations

import asyncio
import functools
import math
import random
import threading
import time
from collections.abc import AsyncGenerator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
import uvicorn

from actors.aligner import AlignerProgress, AlignerStatus
from actors.counts import FollowerCounts, IndexCounts, TraceCounts
from actors.generation import GenerationChunk, GenerationFailure, GenerationRequest, ModelLimits
from actors.publisher import PublisherCounts
from actors.rollout_controller import ControllerCounts, RolloutStatus
from actors.status import ReplicaStatus
from evospec.align.arm import ArmSums
from evospec.align.replay import ReplayCounts
from evospec.align.trainer import TrainerCounts
from evospec.config.access import AccessConfig
from evospec.engine.stats import EngineStats
from evospec.wire import IndexPoint, RolloutEvent
from services.cluster_state import cluster_state
from services.completion import CompletionService
from services.http_api import create_app
from services.live.feed import LiveFeed
from services.live.routes import dashboard_routes
from services.live.sighting import Sighting
from services.prompt_encoder import PromptEncoder
from tests.tiny import tiny_tokenizer
from tests.unit.actors.fakes import FINGERPRINTS, wait_until
from tests.unit.services.gateway_kit import OPEN

MODEL = "qwen2.5-coder-0.5b"
REPLICAS = ("7f3kq0za", "c81mv2pd", "x40tb9wn")
SOURCES = {"core": 1024, "context": 310, "verification": 620, "statistical": 480, "semantic": 390}
WORDS = (
    ("tuple", "async", "return", "lambda"),
    ("plaintiff", "statute", "tort", "appeal"),
    ("dosage", "cardiac", "renal", "biopsy"),
    ("travel", "recipe", "garden", "music"),
)
DIM = 32
PAST_S = 300  # that a staged cluster has behind it when it starts


@dataclass(slots=True)
class StagedCluster:
    """`ClusterView` of three replicas: a new version every 40 seconds, first on one of them.

    Attributes:
        silent: whether no replica answers.
    """

    silent: bool = False
    _began_s: float = field(default_factory=lambda: time.time() - PAST_S)
    _engines: dict[str, EngineStats] = field(default_factory=dict)
    _rng: random.Random = field(default_factory=lambda: random.Random(7))
    _at_s: float = 0.0

    def look(self) -> Sighting:
        return self.sighting(time.time())

    def sighting(self, now_s: float) -> Sighting:
        age = now_s - self._began_s
        seconds = age - self._at_s
        self._at_s = age
        stable, trying = int(age // 40), age % 40 > 22
        if self.silent:
            return Sighting(now_s)
        return Sighting(
            now_s,
            tuple(self._replica(name, seconds, stable, trying) for name in REPLICAS),
            self._rollout(stable, trying),
            AlignerStatus(
                AlignerProgress(received=int(3 * age), gated=stable + 2, rejected=2, loss=1.9 - age / 2000),
                TrainerCounts(steps=int(2 * age)),
                ReplayCounts(),
                PublisherCounts(published=stable + trying, promoted=stable, stable=stable),
            ),
        )

    def events(self, limit: int) -> list[RolloutEvent]:
        age = time.time() - self._began_s
        found = []
        for version in range(1, int(age // 40) + 2):
            begin = self._began_s + 40 * (version - 1)
            found += [
                RolloutEvent(event="published", version=version, time_s=begin + 21, by="aligner"),
                RolloutEvent(
                    event="canary",
                    version=version,
                    time_s=begin + 22,
                    by="controller",
                    reason="1 of 3 replicas",
                ),
                RolloutEvent(
                    event="revoke" if version == 3 else "promote",
                    version=version,
                    time_s=begin + 40,
                    by="controller",
                    reason="acceptance length of one-token drafts 1.61 against 1.54 (+4.5 %)",
                ),
            ]
        return [event for event in found if event.time_s <= time.time()][-limit:]

    def points(self, limit: int) -> list[IndexPoint]:
        rng = np.random.default_rng(3)
        centres = rng.standard_normal((len(WORDS), DIM))
        found = []
        for _ in range(min(limit, 140)):
            topic = int(rng.integers(len(WORDS)))
            vector = centres[topic] + 0.45 * rng.standard_normal(DIM)
            vector /= np.linalg.norm(vector)
            tokens = tuple(10 * topic + place for place in range(len(WORDS[topic])))
            found.append(IndexPoint(vector.astype(np.float32), tokens, (1.0,) * len(tokens), "", "t"))
        return found

    def _replica(self, name: str, seconds: float, stable: int, trying: bool) -> ReplicaStatus:
        index = REPLICAS.index(name)
        version = stable + (trying and index == 0)
        engine = self._engines.setdefault(name, EngineStats())
        hit = min(0.86, 0.58 + 0.025 * version)
        drafts = int(seconds * (11 + 3 * math.sin(self._at_s / 23 + index) + self._rng.random()))
        for _ in range(drafts):
            accepted = 0
            while accepted < 4 and self._rng.random() < hit * 0.93**accepted:
                accepted += 1
            engine.count_draft(4, accepted, 4)
            engine.emitted_tokens += accepted + 1
            engine.coverable_tokens += accepted + 1
            engine.covered_tokens += accepted + (self._rng.random() < 0.93 + version / 200)
            engine.requests_finished += self._rng.random() < 0.01
        engine.running = 2 + int(2 * math.sin(self._at_s / 31 + index) + 1)
        engine.rows_by_source = {
            source: rows + 6 * int(8 * math.sin(self._at_s / 17 + place))
            for place, (source, rows) in enumerate(SOURCES.items())
        }
        engine.active_rows = sum(engine.rows_by_source.values())
        engine.vocabulary_epoch += drafts
        engine.adapter_version = version
        engine.draft_plan = "chain-4"
        index_counts = IndexCounts(lookups=int(self._at_s), hits=int(0.9 * self._at_s), points_written=140)
        return ReplicaStatus(
            name, FINGERPRINTS, _copy(engine), TraceCounts(), index_counts, FollowerCounts(version=version)
        )

    def _rollout(self, stable: int, trying: bool) -> RolloutStatus:
        return RolloutStatus(
            phase="canary" if trying else "idle",
            stable=stable,
            candidate=stable + 1 if trying else 0,
            canary=REPLICAS[:1] if trying else (),
            canary_arm=ArmSums(requests=9),
            control_arm=ArmSums(requests=17),
            verdict="acceptance length of one-token drafts 1.61 against 1.54",
            counts=ControllerCounts(),
        )


def _copy(stats: EngineStats) -> EngineStats:
    from evospec.engine.counters import snapshot

    return snapshot(stats)


# What cycles bring: tokens, of how many drafted ones all but the last were accepted. `*` marks a miss.
ANSWER = (
    "A",
    " closure| keeps| the| variables| of",
    " the| scope| it| was| made| in",
    ",| so| a",
    " counter| can",
    " remember| its| *nonlocal",
    " state| between| calls|.|\n\n",
    "def| counter|():|\n|   ",
    " count| =| |0|\n|   ",
    " def| step|():",
    "\n|       | *nonlocal",
    " count|\n|       | count",
    " +=| |1|\n|       | return",
    " count|\n|   | return| step|\n",
)
PIECES = sorted({piece.lstrip("*") for cycle in ANSWER for piece in cycle.replace(" *", "* ").split("|")})


class StagedTokenizer:
    """Decodes the tokens of `ANSWER`."""

    def decode(self, token_ids: list[int], *, skip_special_tokens: bool) -> str:
        return "".join(PIECES[token] for token in token_ids)


@dataclass(slots=True)
class StagedPool:
    """Answers any prompt with `ANSWER`, five tokens drafted in each cycle but the first."""

    pause_s: float = 0.08
    closed: int = 0

    async def generate(
        self, request: GenerationRequest
    ) -> AsyncGenerator[GenerationChunk | GenerationFailure]:
        try:
            for number, cycle in enumerate(ANSWER):
                await asyncio.sleep(self.pause_s)
                pieces = cycle.replace(" *", "* ").split("|")
                yield GenerationChunk(
                    text=cycle.replace("|", "").replace("*", ""),
                    token_ids=tuple(PIECES.index(piece.lstrip("*")) for piece in pieces),
                    drafted=5 if number else 0,
                    accepted=len(pieces) - 1,
                    adapter_version=3,
                    vocabulary_epoch=40,
                    finish_reason="stop" if number == len(ANSWER) - 1 else None,
                    covered=tuple(not piece.startswith("*") for piece in pieces),
                )
        finally:
            self.closed += 1

    async def limits(self) -> ModelLimits:
        return ModelLimits(max_length=4096, vocab_size=260)


def words(token_id: int) -> str:
    return " " + WORDS[token_id // 10][token_id % 10]


@contextmanager
def staged(
    view: StagedCluster | None = None, access: AccessConfig = OPEN, pool: StagedPool | None = None
) -> Iterator[str]:
    """URL of a gateway with the dashboard, in front of a staged cluster."""
    view = view or StagedCluster()
    service = CompletionService(pool or StagedPool(), MODEL, 60.0)
    feed = LiveFeed(view, MODEL, words)
    for second in range(PAST_S):
        feed.take(view.sighting(time.time() - PAST_S + second))
    encoder = PromptEncoder(tiny_tokenizer())
    app = create_app(service, encoder, access, functools.partial(cluster_state, view))
    app.include_router(dashboard_routes(feed, service, encoder, StagedTokenizer(), chats=True))
    server = uvicorn.Server(
        uvicorn.Config(app, port=0, log_level="error", timeout_graceful_shutdown=1, access_log=False)
    )
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    wait_until(lambda: server.started, 30)
    try:
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(20)
