"""One poller for all viewers."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator

import pytest

from services.live import feed as feed_module
from services.live.feed import WAITING, LiveFeed
from tests.unit.services.live_kit import View, events


@pytest.fixture(autouse=True)
def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feed_module, "WATCHED_S", 0.01)
    monkeypatch.setattr(feed_module, "UNWATCHED_S", 0.02)


async def until(messages: AsyncGenerator[str], kind: str) -> list[tuple[str, object]]:
    found = []
    async for message in messages:
        found += events(message)
        if found[-1][0] == kind:
            return found
    raise AssertionError("the feed ended")


def test_a_viewer_gets_the_past_and_then_what_comes() -> None:
    async def run() -> list[tuple[str, object]]:
        feed = LiveFeed(View(), "tiny", str)
        feed.start()
        while len(feed._past) < 3:
            await asyncio.sleep(0.005)
        messages = feed.messages()
        found = await until(messages, "topics")
        await messages.aclose()
        assert feed.viewers == 0
        await feed.stop()
        return found

    found = asyncio.run(run())
    kind, past = found[0]
    assert kind == "past"
    assert isinstance(past, dict)
    assert past["model"] == "tiny"
    assert len(past["frames"]) >= 3
    assert {kind for kind, _ in found[1:]} >= {"frame", "rollouts", "topics"}
    (rollouts,) = [content for kind, content in found if kind == "rollouts"][:1]
    assert isinstance(rollouts, dict)
    assert rollouts["events"][0]["event"] == "published"
    assert "sha256" not in rollouts["events"][0]


def test_viewers_share_one_poller() -> None:
    async def run() -> tuple[int, int]:
        view = View()
        feed = LiveFeed(view, "tiny", str)
        viewers = [feed.messages() for _ in range(20)]
        await asyncio.gather(*(anext(viewer) for viewer in viewers))
        before = view.looks
        await asyncio.sleep(0.1)
        looks = view.looks - before
        for viewer in viewers:
            await viewer.aclose()
        await feed.stop()
        return looks, len(feed._past)

    looks, kept = asyncio.run(run())
    assert 0 < looks <= 12
    assert kept >= looks


def test_nothing_expensive_is_asked_for_while_nobody_watches() -> None:
    async def run() -> list[str]:
        view = View()
        feed = LiveFeed(view, "tiny", str)
        feed.start()
        while view.looks < 4:
            await asyncio.sleep(0.005)
        await feed.stop()
        return view.asked_for

    assert asyncio.run(run()) == []


def test_a_look_that_fails_is_not_the_last(caplog: pytest.LogCaptureFixture) -> None:
    async def run() -> int:
        view = View(failure=RuntimeError("no cluster"))
        feed = LiveFeed(view, "tiny", str)
        feed.start()
        while not feed._past:
            await asyncio.sleep(0.005)
        await feed.stop()
        return view.looks

    assert asyncio.run(run()) >= 2
    assert "no cluster" in caplog.text


def test_a_slow_viewer_misses_the_oldest_and_holds_nobody_up() -> None:
    async def run() -> list[tuple[str, object]]:
        feed = LiveFeed(View(), "tiny", str)
        messages = feed.messages()
        await anext(messages)
        while len(feed._past) < 2 * WAITING:
            await asyncio.sleep(0.005)
        await feed.stop()
        found = []
        for _ in range(WAITING):
            found += events(await anext(messages))
        await messages.aclose()
        return found

    frames = [content for kind, content in asyncio.run(run()) if kind == "frame"]
    times = [frame["time"] for frame in frames if isinstance(frame, dict)]
    assert times == sorted(times)
    assert times[-1] >= 2 * WAITING
