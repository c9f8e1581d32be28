"""Two models behind one address, over scripted replicas."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import Any

import httpx
import pytest

from evospec.config import Config
from services.model_switch import ModelSwitch
from services.replica_pool import ReplicaLostError
from tests.unit.services.gateway_kit import HELLO, Pool, api, chunk, error

Use = Callable[[httpx.AsyncClient], Awaitable[httpx.Response]]


def call(use: Use, **pools: Pool) -> httpx.Response:
    async def run() -> httpx.Response:
        apps = {name: api(pool, name=name, names=tuple(pools)) for name, pool in pools.items()}
        transport = httpx.ASGITransport(ModelSwitch(apps), raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            return await use(client)

    return asyncio.run(run())


def answering(text: str) -> Pool:
    return Pool([chunk(text, "stop")])


def chat(model: Any, **pools: Pool) -> httpx.Response:
    return call(lambda client: client.post("/v1/chat/completions", json={**HELLO, "model": model}), **pools)


@pytest.mark.parametrize("name", ["small", "large"])
def test_requests_reach_the_model_that_they_name(name: str) -> None:
    response = chat(name, small=answering("small"), large=answering("large"))
    assert response.json()["choices"][0]["message"]["content"] == name
    assert response.json()["model"] == name


def test_all_models_are_listed_and_each_is_found() -> None:
    pools = {"small": Pool(), "large": Pool()}
    listed = call(lambda client: client.get("/v1/models"), **pools).json()
    assert [card["id"] for card in listed["data"]] == ["small", "large"]
    one = call(lambda client: client.get("/v1/models/large"), **pools)
    assert one.json()["id"] == "large"
    assert call(lambda client: client.get("/v1/models/other"), **pools).status_code == 404


def test_what_is_not_of_the_api_names_its_model_in_the_query() -> None:
    pools = {"small": Pool(), "large": Pool()}

    def limit(query: str) -> httpx.Response:
        return call(lambda client: client.get(f"/v1/models{query}"), **pools)

    assert [card["id"] for card in limit("?model=large").json()["data"]] == ["large"]
    assert "'small', 'large'" in error(limit("?model=other"), 404)["message"]


def test_the_description_knows_all_models() -> None:
    document = call(lambda client: client.get("/openapi.json"), small=Pool(), large=Pool()).json()
    assert document["components"]["schemas"]["ChatBody"]["properties"]["model"]["enum"] == ["small", "large"]


def test_an_unknown_model_is_told_all_there_are() -> None:
    found = error(chat("other", small=Pool(), large=Pool()), 404)
    assert "'small', 'large'" in found["message"]


@pytest.mark.parametrize("body", [b"{", b"[]", b"{}", b'{"model": 3}', b"[" * 100_000])
def test_what_names_no_model_is_refused_as_usual(body: bytes) -> None:
    response = call(lambda client: client.post("/v1/completions", content=body), small=Pool(), large=Pool())
    error(response, 400)


def test_a_body_that_is_too_large_is_refused_as_usual(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("services.model_switch.MAX_BODY_BYTES", 100)
    monkeypatch.setattr("services.http_api.MAX_BODY_BYTES", 100)
    body = json.dumps({"model": "small", "prompt": "x" * 1000}).encode()
    response = call(lambda client: client.post("/v1/completions", content=body), small=Pool(), large=Pool())
    error(response, 413)


def test_health_needs_all_models() -> None:
    pools = {"small": Pool(), "large": Pool()}
    assert call(lambda client: client.get("/health"), **pools).status_code == 200
    pools["large"].limits_error = ReplicaLostError("gone")
    assert call(lambda client: client.get("/health"), **pools).status_code == 503


# --- configuration ---


def test_models_take_over_what_they_do_not_set() -> None:
    config = Config.model_validate(
        {
            "engine": {"max_batch": 3, "draft_length": 2},
            "semantic": {"path": "index"},
            "serve": {"replicas": 2, "model_name": "unused"},
            "models": [
                {"name": "a", "model": {"target": "one"}, "engine": {"draft_length": 4}},
                {"name": "b", "replicas": 1, "alignment": {"enabled": False}},
            ],
        }
    )
    one, other = config.each_model()
    assert (one.model.target, one.engine.max_batch, one.engine.draft_length) == ("one", 3, 4)
    assert (other.model, other.engine.draft_length) == (config.model, 2)
    assert (one.serve.replicas, other.serve.replicas) == (2, 1)
    assert (one.alignment.enabled, other.alignment.enabled) == (True, False)
    assert (one.serve.model_name, other.serve.model_name) == ("a", "b")
    assert (one.registry.namespace, other.semantic.path) == ("evospec.a", "index-b")
    assert one.models == ()
    assert Config().each_model() == (Config(),)


@pytest.mark.parametrize(
    ("models", "message"),
    [
        ([{"name": "a"}, {"name": "a"}], "more than once"),
        ([{"name": "a", "vocabulary": {"core": 3000}}], "at most half"),
        ([{"name": "a", "replicas": 3}], "is below replicas"),
        ([{"name": "a b"}], "pattern"),
    ],
)
def test_models_that_do_not_fit_are_refused(models: list[Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Config.model_validate({"models": models, "serve": {"max_replicas": 2}})
