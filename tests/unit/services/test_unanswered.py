"""What becomes of requests that an application did not answer."""

from __future__ import annotations

import asyncio

import httpx
import pytest
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.types import ASGIApp, Receive, Scope, Send

from services.unanswered import UnansweredRequests


async def silent(scope: Scope, receive: Receive, send: Send) -> None:
    """As Ray Serve's proxy when the gateway died."""


def get(app: ASGIApp) -> httpx.Response:
    async def once() -> httpx.Response:
        transport = httpx.ASGITransport(UnansweredRequests(app))
        async with httpx.AsyncClient(transport=transport, base_url="http://x") as http:
            return await http.get("/v1/models")

    return asyncio.run(once())


def test_a_request_without_an_answer_is_to_be_sent_again() -> None:
    response = get(silent)
    assert (response.status_code, response.headers["Retry-After"]) == (503, "1")
    assert response.json()["error"]["type"] == "server_error"
    assert response.json()["error"]["code"] == "unavailable"


def test_a_503_without_retry_after_gets_one() -> None:
    response = get(PlainTextResponse("no gateway", 503))
    assert (response.status_code, response.headers["Retry-After"], response.text) == (503, "1", "no gateway")


def test_a_proxy_that_knows_no_routes_yet_asks_for_patience() -> None:
    response = get(PlainTextResponse("Path '/v1/models' not found. Ping /-/routes", 404))
    assert (response.status_code, response.headers["Retry-After"]) == (503, "1")
    assert response.json()["error"]["code"] == "unavailable"


def test_what_the_gateway_does_not_know_is_not_found() -> None:
    response = get(JSONResponse({"error": {"message": "no such model"}}, 404))
    assert (response.status_code, response.json()) == (404, {"error": {"message": "no such model"}})


@pytest.mark.parametrize("status", [200, 400, 429, 500, 503])
def test_other_answers_stay_as_they_are(status: int) -> None:
    response = get(Response(b"answer", status, headers={"Retry-After": "7"}))
    assert (response.status_code, response.content) == (status, b"answer")
    assert response.headers.get_list("Retry-After") == ["7"]


def test_an_answer_that_breaks_off_is_not_followed_by_another() -> None:
    async def breaks_off(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"half", "more_body": False})

    response = get(breaks_off)
    assert (response.status_code, response.content) == (200, b"half")
    assert "Retry-After" not in response.headers


def test_what_is_no_request_passes() -> None:
    seen: list[str] = []

    async def lifespan(scope: Scope, receive: Receive, send: Send) -> None:
        seen.append(scope["type"])

    async def nothing() -> dict[str, str]:
        raise AssertionError("nobody receives")

    async def none(_: object) -> None:
        raise AssertionError("nobody sends")

    asyncio.run(UnansweredRequests(lifespan)({"type": "lifespan"}, nothing, none))
    assert seen == ["lifespan"]
