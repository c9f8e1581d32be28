"""A gateway with the dashboard over scripted replicas, asked in this process."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar

import httpx

from actors.counts import FollowerCounts, IndexCounts, TraceCounts
from actors.status import ReplicaStatus
from evospec.config.access import AccessConfig
from evospec.engine.stats import EngineStats
from evospec.wire import IndexPoint, RolloutEvent
from services.completion import CompletionService
from services.live.feed import LiveFeed
from services.live.routes import dashboard_routes
from services.live.sighting import Sighting
from services.pace import Pace
from services.prompt_encoder import PromptEncoder
from tests.tiny import tiny_tokenizer
from tests.unit.actors.fakes import FINGERPRINTS
from tests.unit.services.gateway_kit import OPEN, Pool, api

T = TypeVar("T")


def status(name: str = "a", **stats: Any) -> ReplicaStatus:
    return ReplicaStatus(
        name, FINGERPRINTS, EngineStats(**stats), TraceCounts(), IndexCounts(), FollowerCounts()
    )


@dataclass(slots=True)
class View:
    """`ClusterView` of one replica that emits ten tokens between two looks."""

    looks: int = 0
    failure: Exception | None = None
    asked_for: list[str] = field(default_factory=list)

    def look(self) -> Sighting:
        self.looks += 1
        if self.failure is not None:
            failure, self.failure = self.failure, None
            raise failure
        return Sighting(float(self.looks), (status(emitted_tokens=10 * self.looks),))

    def events(self, limit: int) -> list[RolloutEvent]:
        self.asked_for.append("events")
        return [RolloutEvent(event="published", version=1, time_s=5.0, by="aligner", sha256="abc")]

    def points(self, limit: int) -> list[IndexPoint]:
        self.asked_for.append("points")
        return []


def ask(
    use: Callable[[httpx.AsyncClient], Awaitable[T]], pool: Pool | None = None, access: AccessConfig = OPEN
) -> T:
    async def run() -> T:
        asked = pool or Pool()
        service = CompletionService(asked, "tiny", 60.0, Pace(1.0))
        encoder = PromptEncoder(tiny_tokenizer())
        feed = LiveFeed(View(), "tiny", str)
        app = api(asked, access=access)
        app.include_router(dashboard_routes(feed, service, encoder, tiny_tokenizer(), chats=True))
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            return await use(client)

    return asyncio.run(run())


def events(text: str) -> list[tuple[str, Any]]:
    """Server-sent events as kind and content."""
    found = []
    for part in text.split("\n\n"):
        if part:
            kind, data = part.split("\n")
            found.append((kind.removeprefix("event: "), json.loads(data.removeprefix("data: "))))
    return found
