"""The dashboard's endpoints."""

from __future__ import annotations

import httpx
import pytest

from actors.generation import GenerationChunk
from services.live.assets import read_assets
from services.live.provenance import sources
from tests.unit.services.gateway_kit import Pool, chunk, error
from tests.unit.services.live_kit import ask, events
from tests.unit.services.test_access import ACCESS
from tests.unit.services.test_gateway_failures import ReplicaLostError


def generate(pool: Pool | None = None, **fields: object) -> httpx.Response:
    body = {"prompt": "Hi", **fields}
    return ask(lambda client: client.post("/dashboard/generate", json=body), pool)


def test_the_page_runs_no_script_but_its_own() -> None:
    response = ask(lambda client: client.get("/dashboard"))
    assert response.status_code == 200
    assert response.headers["content-type"] == "text/html; charset=utf-8"
    policy = response.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert "http" not in policy
    assert "onclick" not in response.text
    assert 'style="' not in response.text


@pytest.mark.parametrize("name", sorted(read_assets()))
def test_files_come_from_the_package_alone(name: str) -> None:
    response = ask(lambda client: client.get(f"/dashboard/assets/{name}"))
    assert response.status_code == 200
    assert response.headers["x-content-type-options"] == "nosniff"
    elsewhere = response.text.replace("http://www.w3.org/2000/svg", "")
    assert "http://" not in elsewhere
    assert "https://" not in elsewhere
    headers = {"If-None-Match": response.headers["etag"]}
    again = ask(lambda client: client.get(f"/dashboard/assets/{name}", headers=headers))
    assert again.status_code == 304
    assert not again.content


@pytest.mark.parametrize("name", ["none.js", "..%2froutes.py", "%2e%2e/routes.py", "../routes.py"])
def test_other_files_are_not_served(name: str) -> None:
    assert ask(lambda client: client.get(f"/dashboard/assets/{name}")).status_code == 404


def test_without_a_key_there_is_the_page_and_nothing_on_it() -> None:
    assert ask(lambda client: client.get("/dashboard"), access=ACCESS).status_code == 200
    assert ask(lambda client: client.get("/dashboard/assets/app.js"), access=ACCESS).status_code == 200
    error(ask(lambda client: client.get("/dashboard/events"), access=ACCESS), 401)
    post = {"prompt": "Hi"}
    error(ask(lambda client: client.post("/dashboard/generate", json=post), access=ACCESS), 401)


@pytest.mark.parametrize(
    ("drafted", "accepted", "covered", "expected"),
    [
        (0, 0, (True,), ["plain"]),
        (3, 2, (True, True, True), ["accepted", "accepted", "bonus"]),
        (3, 0, (False,), ["miss"]),
        (3, 3, (True, True, True, False), ["accepted", "accepted", "accepted", "miss"]),
        (3, 3, (True, True), ["accepted", "accepted"]),  # cut off by the end of the answer
        (3, 1, (), ["accepted", "bonus"]),
    ],
)
def test_tokens_know_where_they_came_from(
    drafted: int, accepted: int, covered: tuple[bool, ...], expected: list[str]
) -> None:
    count = len(expected)
    cycle = GenerationChunk("x" * count, (120,) * count, drafted, accepted, 1, 1, covered=covered)
    assert sources(cycle) == expected


def test_each_cycle_is_shown_for_itself() -> None:
    pool = Pool()
    generate(pool)
    assert pool.requests[0].chunk_s == 0.0


def test_an_answer_streams_its_tokens_and_ends_with_its_usage() -> None:
    response = generate()
    assert response.headers["content-type"].startswith("text/event-stream")
    found = events(response.text)
    assert [kind for kind, _ in found] == ["cycle", "cycle", "cycle", "end"]
    tokens = [token for kind, content in found if kind == "cycle" for token in content["tokens"]]
    assert len(tokens) == len("Hello you")
    usage = found[-1][1]["usage"]
    assert usage["completion_tokens"] == len(tokens)
    assert found[-1][1]["finish_reason"] == "stop"


def test_what_goes_wrong_later_is_an_event() -> None:
    pool = Pool([chunk("H", drafted=0, accepted=0), ReplicaLostError("gone")])
    found = events(generate(pool).text)
    assert [kind for kind, _ in found] == ["cycle", "error"]
    assert found[-1][1]["error"]["type"] == "server_error"
    assert pool.closed == 1


@pytest.mark.parametrize(
    "fields",
    [
        {"prompt": ""},
        {"max_tokens": 0},
        {"max_tokens": 10**6},
        {"temperature": 9},
        {"model": "x"},
        {"prompt": 3},
    ],
)
def test_nonsense_is_refused_by_name(fields: dict[str, object]) -> None:
    (name,) = fields
    assert error(generate(**fields), 400)["param"] == name


def test_a_body_that_is_too_large_is_refused() -> None:
    error(generate(prompt="x" * (70 << 10)), 413)
