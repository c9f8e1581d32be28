"""One poller for all viewers of the page, and what they get of it."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import AsyncGenerator
from typing import Any

from evospec.wire import RolloutEvent
from services.live.cluster_view import ClusterView
from services.live.frames import Frames
from services.live.sighting import Sighting
from services.live.sse import event
from services.live.topics import Decode, TopicMap

logger = logging.getLogger(__name__)

WATCHED_S = 1.0  # between two looks while somebody watches
UNWATCHED_S = 5.0  # and while nobody does: the page begins with a past
KEPT = 900  # frames
SLOW_EVERY = 10  # looks between two of the audit trail and the topic map
EVENTS = 60
POINTS = 256
WAITING = 16  # messages that a slow viewer may be behind; then it misses the oldest
Json = dict[str, Any]

# Of past frames, charts need this much only.
_PAST = ("time", "tokens_per_s", "acceptance_length", "coverage", "active_rows", "running")


class LiveFeed:
    """Looks at the cluster as long as it runs, and tells all viewers the same.

    Messages are server-sent events: `past` (once, first), `frame` (every second), `rollouts` and
    `topics` (when they were looked at anew).
    """

    def __init__(self, view: ClusterView, model: str, decode: Decode) -> None:
        self._view = view
        self._model = model
        self._frames = Frames()
        self._topic_map = TopicMap(decode)
        self._past: deque[Json] = deque(maxlen=KEPT)
        self._latest: dict[str, str] = {}  # the last message of each kind
        self._viewers: set[asyncio.Queue[str]] = set()
        self._arrived = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    @property
    def viewers(self) -> int:
        return len(self._viewers)

    def start(self) -> None:
        """Begins to look, on the running event loop; does nothing the second time."""
        if self._task is None:
            self._task = asyncio.create_task(self._run())

    async def stop(self) -> None:
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def messages(self) -> AsyncGenerator[str]:
        """Server-sent events for one viewer, without an end."""
        self.start()
        queue: asyncio.Queue[str] = asyncio.Queue(WAITING)
        self._viewers.add(queue)
        self._arrived.set()
        try:
            # All of this moment: what comes from now on is in the queue.
            past = event("past", {"model": self._model, "frames": list(self._past)})
            for message in [past, *self._latest.values()]:
                yield message
            while True:
                yield await queue.get()
        finally:
            self._viewers.discard(queue)

    async def _run(self) -> None:
        looks = 0
        while True:
            try:
                await self._look()
                if self._viewers and looks % SLOW_EVERY == 0:
                    await self._look_slowly()
                looks = looks + 1 if self._viewers else 0  # who comes first does not wait
            except Exception:  # the task's outermost frame: without it the page would stand still in silence
                logger.exception("the dashboard's look at the cluster failed; it goes on")
            await self._pause()

    async def _look(self) -> None:
        self.take(await asyncio.to_thread(self._view.look))

    def take(self, seen: Sighting) -> None:
        """Tells all viewers of a sighting, and keeps what charts need of it."""
        frame = self._frames.frame(seen)
        self._past.append(
            {name: frame[name] for name in _PAST}
            | {
                "versions": {one["name"]: one["version"] for one in frame["replicas"]},
                "canary": [one["name"] for one in frame["replicas"] if one["canary"]],
            }
        )
        self._tell("frame", frame)

    async def _look_slowly(self) -> None:
        events = await asyncio.to_thread(self._view.events, EVENTS)
        self._tell("rollouts", {"events": [_told(one) for one in events]})
        self._tell("topics", await asyncio.to_thread(self._topics))

    def _topics(self) -> Json:
        return self._topic_map.draw(self._view.points(POINTS))

    def _tell(self, kind: str, content: Json) -> None:
        message = self._latest[kind] = event(kind, content)
        for queue in self._viewers:
            if queue.full():
                queue.get_nowait()
            queue.put_nowait(message)

    async def _pause(self) -> None:
        """Until the next look is due; a viewer who comes while nobody watched is not kept waiting."""
        if self._viewers:
            await asyncio.sleep(WATCHED_S)
            return
        self._arrived.clear()
        try:
            async with asyncio.timeout(UNWATCHED_S):
                await self._arrived.wait()
        except TimeoutError:
            pass  # nobody came


def _told(entry: RolloutEvent) -> Json:
    return entry.model_dump(exclude={"sha256"})
