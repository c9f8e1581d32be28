"""What the gateway measures of its requests."""

from __future__ import annotations

import asyncio
from collections import Counter
from dataclasses import dataclass, field

import httpx
import pytest

from actors.generation import GenerationRequest
from evospec.engine.request import SamplingParams
from services import request_metrics
from services.replica_pool import OverloadedError, ReplicaLostError
from services.request_metrics import CountedResponses, Measure, MeasuredPool
from tests.unit.services.gateway_kit import HELLO, Pool, Script, answer, api, chunk


@dataclass(slots=True)
class Recorder:
    """Stands in for Ray's metrics: observations, or additions, by name and labels."""

    seen: dict[str, list[float]] = field(default_factory=dict)
    counted: Counter[tuple[str, ...]] = field(default_factory=Counter)

    def metric(self, measure: Measure) -> Recording:
        return Recording(self, measure)


@dataclass(slots=True)
class Recording:
    recorder: Recorder
    measure: Measure

    def observe(self, value: float, tags: dict[str, str]) -> None:
        assert set(tags) == set(self.measure.labels)
        self.recorder.seen.setdefault(self.measure.name, []).append(value)

    def inc(self, amount: float, tags: dict[str, str]) -> None:
        assert amount == 1
        self.recorder.counted[(self.measure.name, *(tags[label] for label in self.measure.labels))] += 1


@pytest.fixture
def recorder(monkeypatch: pytest.MonkeyPatch) -> Recorder:
    made = Recorder()
    monkeypatch.setattr(request_metrics, "_histogram", made.metric)
    monkeypatch.setattr(request_metrics, "_counter", made.metric)
    return made


def post(pool: Pool, path: str = "/v1/chat/completions", **fields: object) -> httpx.Response:
    async def run() -> httpx.Response:
        app = api(MeasuredPool(pool, "tiny"))
        transport = httpx.ASGITransport(CountedResponses(app), raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            return await client.post(path, json={**HELLO, **fields})

    return asyncio.run(run())


def test_a_generation_is_measured_once_and_each_wait_between_its_chunks(recorder: Recorder) -> None:
    assert post(Pool()).status_code == 200
    seen = recorder.seen
    assert {name: len(values) for name, values in seen.items()} == {
        "time_to_first_token_seconds": 1,
        "inter_token_latency_seconds": 2,
        "e2e_request_latency_seconds": 1,
        "request_prompt_tokens": 1,
        "request_generation_tokens": 1,
    }
    assert seen["request_generation_tokens"] == [len("Hello you")]
    assert 0 <= seen["time_to_first_token_seconds"][0] <= seen["e2e_request_latency_seconds"][0]
    assert recorder.counted == {
        ("evospec_generations", "tiny", "stop"): 1,
        ("evospec_http_responses", "/v1/chat/completions", "200"): 1,
    }


@pytest.mark.parametrize(
    ("scripts", "status", "outcomes"),
    [
        ([[OverloadedError("full")]], 429, {"overloaded": 1}),
        ([[ReplicaLostError("gone")], answer()], 200, {"lost": 1, "stop": 1}),
        ([[chunk("H"), ReplicaLostError("gone")]], 500, {"lost": 1}),
    ],
)
def test_how_generations_end_is_counted(
    recorder: Recorder, scripts: list[Script], status: int, outcomes: dict[str, int]
) -> None:
    assert post(Pool(*scripts)).status_code == status
    ended = {key[2]: count for key, count in recorder.counted.items() if key[0] == "evospec_generations"}
    assert ended == outcomes
    assert recorder.counted[("evospec_http_responses", "/v1/chat/completions", str(status))] == 1


def test_a_client_that_leaves_is_no_failure(recorder: Recorder) -> None:
    async def leave() -> Pool:
        inner = Pool()
        items = MeasuredPool(inner, "tiny").generate(GenerationRequest("r", (1, 2), SamplingParams()))
        await anext(items)
        await items.aclose()
        return inner

    assert asyncio.run(leave()).closed == 1
    assert recorder.counted == {("evospec_generations", "tiny", "abandoned"): 1}
    assert "e2e_request_latency_seconds" not in recorder.seen


def test_paths_that_anybody_can_think_of_are_counted_as_one(recorder: Recorder) -> None:
    for path in ("/a", "/b", "/v1/nothing"):
        assert post(Pool(), path).status_code == 404
    assert recorder.counted == {("evospec_http_responses", "other", "404"): 3}
