"""Who may ask what: API keys, tenants, administration; and the ids of requests."""

from __future__ import annotations

import hmac
import logging
from typing import Any

import httpx
import pytest
from pydantic import ValidationError
from typer.testing import CliRunner

from evospec.config.access import AccessConfig, AdminKey, ApiKey
from services.access import caller_of, digest_of, new_key
from services.addresses import is_local
from services.api_errors import ApiError
from services.cli import app
from services.replica_pool import ReplicaLostError
from tests.unit.services.gateway_kit import HELLO, OPEN, Pool, Script, call, chunk, error, events

ALICE, BOB, ADMIN = (new_key() for _ in range(3))
ACCESS = AccessConfig(
    keys=(
        ApiKey(name="alice", sha256=digest_of(ALICE), tenant="acme"),
        ApiKey(name="bob", sha256=digest_of(BOB)),
    ),
    admin_keys=(AdminKey(name="root", sha256=digest_of(ADMIN)),),
)
EVERYTHING = [
    ("GET", "/v1/models"),
    ("GET", "/v1/models/tiny"),
    ("POST", "/v1/chat/completions"),
    ("POST", "/v1/completions"),
    ("GET", "/openapi.json"),
    ("GET", "/admin/status"),
    ("GET", "/nowhere"),
    ("GET", "/health/"),
    ("GET", "//health"),
]


def ask(
    method: str, path: str, key: str | None, access: AccessConfig = ACCESS, **options: Any
) -> httpx.Response:
    headers = {} if key is None else {"authorization": f"Bearer {key}"}
    return call(
        Pool(), lambda client: client.request(method, path, headers=headers, **options), access=access
    )


@pytest.mark.parametrize(("method", "path"), EVERYTHING)
@pytest.mark.parametrize(
    "key",
    [None, "", "wrong", ALICE[:-1], ALICE + "x", digest_of(ALICE)],
    ids=["none", "empty", "wrong", "shorter", "longer", "digest"],
)
def test_without_a_valid_key_nothing_is_told(method: str, path: str, key: str | None) -> None:
    response = ask(method, path, key)
    assert error(response, 401)["code"] == "invalid_api_key"
    assert response.headers["www-authenticate"] == "Bearer"


def test_health_needs_no_key() -> None:
    assert ask("GET", "/health", None).status_code == 200


@pytest.mark.parametrize("key", [ALICE, BOB], ids=["alice", "bob"])
def test_each_key_opens_the_api_but_not_administration(key: str) -> None:
    for method, path in EVERYTHING[:5]:
        options = {"json": HELLO} if path == "/v1/chat/completions" else {}
        assert ask(method, path, key, **options).status_code in {200, 400}
    error(ask("GET", "/admin/status", key), 401)


def test_the_administrators_key_opens_administration_only() -> None:
    assert ask("GET", "/admin/status", ADMIN).json()["replicas"] == [
        {"replica": "a", "arms": {"3": {"tokens": 1}}}
    ]
    error(ask("GET", "/v1/models", ADMIN), 401)


def test_without_keys_the_api_is_open_and_administration_is_not() -> None:
    assert ask("GET", "/v1/models", None, AccessConfig()).status_code == 200
    assert ask("GET", "/v1/models", "any", AccessConfig()).status_code == 200
    error(ask("GET", "/admin/status", "any", AccessConfig()), 401)


@pytest.mark.parametrize(("key", "tenant"), [(ALICE, "acme"), (BOB, "")], ids=["alice", "bob"])
def test_a_request_is_of_its_keys_tenant(key: str, tenant: str) -> None:
    pool = Pool()
    headers = {"authorization": f"bearer {key}"}
    call(pool, lambda client: client.post("/v1/chat/completions", json=HELLO, headers=headers), access=ACCESS)
    assert pool.requests[0].tenant == tenant


def test_every_digest_is_compared_in_constant_time_whichever_is_right(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    compared: list[str] = []
    original = hmac.compare_digest

    def compare(known: str, digest: str) -> bool:
        compared.append(known)
        return original(known, digest)

    monkeypatch.setattr(hmac, "compare_digest", compare)
    caller_of(ACCESS, "/v1/models", f"Bearer {ALICE}")
    caller_of(ACCESS, "/v1/models", f"Bearer {BOB}")
    assert compared == [key.sha256 for key in ACCESS.keys] * 2


PAGE = ["/dashboard", "/dashboard/", "/dashboard/assets/app.js"]
ONLY_KEYS = AccessConfig(keys=ACCESS.keys)
ONLY_ADMINS = AccessConfig(admin_keys=ACCESS.admin_keys)


def name_of(access: AccessConfig, path: str, key: str) -> str | None:
    """None: refused."""
    try:
        return caller_of(access, path, f"Bearer {key}" if key else "").name
    except ApiError:
        return None


@pytest.mark.parametrize("access", [OPEN, ACCESS, ONLY_KEYS, ONLY_ADMINS])
@pytest.mark.parametrize("path", PAGE)
def test_the_page_itself_needs_no_key(access: AccessConfig, path: str) -> None:
    assert name_of(access, path, "") == ""


def test_what_all_tenants_do_is_for_administrators_once_there_are_keys() -> None:
    watching = "/dashboard/events"
    assert name_of(OPEN, watching, "") == ""
    assert [name_of(ACCESS, watching, key) for key in ("", ALICE, ADMIN)] == [None, None, "root"]
    assert [name_of(ONLY_KEYS, watching, key) for key in ("", ALICE)] == [None, None]
    assert [name_of(ONLY_ADMINS, watching, key) for key in ("", ADMIN)] == [None, "root"]


def test_the_pages_prompt_takes_any_key_with_its_tenant() -> None:
    trying = "/dashboard/generate"
    assert name_of(OPEN, trying, "") == ""
    assert [name_of(ACCESS, trying, key) for key in ("", "wrong", BOB, ADMIN)] == [None, None, "bob", "root"]
    assert caller_of(ACCESS, trying, f"Bearer {ALICE}").tenant == "acme"
    assert name_of(ACCESS, "/v1/models", ADMIN) is None


@pytest.mark.parametrize("name", ["", "a b", "a\nb", "x" * 65])
def test_a_keys_name_is_fit_for_logs(name: str) -> None:
    with pytest.raises(ValidationError):
        ApiKey(name=name, sha256=digest_of("x"))


def test_one_key_has_one_name_and_one_use() -> None:
    with pytest.raises(ValidationError, match="same name"):
        AccessConfig(keys=(ACCESS.keys[0], ApiKey(name="alice", sha256=digest_of("x"))))
    with pytest.raises(ValidationError, match="keys of its own"):
        AccessConfig(keys=ACCESS.keys, admin_keys=(AdminKey(name="root", sha256=digest_of(ALICE)),))


@pytest.mark.parametrize("options", [[], ["--tenant", "acme"], ["--admin"]])
def test_the_command_makes_a_key_and_the_line_that_lets_it_in(options: list[str]) -> None:
    import json

    import yaml

    result = CliRunner().invoke(app, ["keys", "new", "carol", *options])
    assert result.exit_code == 0
    key, _, rest = result.output.partition("\n")
    access = AccessConfig.model_validate(yaml.safe_load(rest[rest.index("access:") :])["access"])
    path = "/admin/status" if "--admin" in options else "/v1/models"
    caller = caller_of(access, path, f"Bearer {key}")
    assert caller.name == "carol"
    assert caller.tenant == ("acme" if "--tenant" in options else "")
    other = json.loads(CliRunner().invoke(app, ["keys", "new", "carol", "--json", *options]).output)
    assert other["key"] != key
    assert other["config"]["sha256"] == digest_of(other["key"])


def test_the_command_refuses_a_name_that_the_configuration_would_refuse() -> None:
    result = CliRunner().invoke(app, ["keys", "new", "no spaces"])
    assert result.exit_code == 2
    assert "--name" in result.output


# --- traces ---


@pytest.mark.parametrize(
    ("header", "fields", "traced"),
    [
        (None, {}, True),
        ("on", {}, True),
        ("off", {}, False),
        ("OFF", {"trace": True}, False),
        (None, {"trace": False}, False),
        ("on", {"trace": False}, False),
    ],
)
def test_a_field_or_a_header_keeps_a_request_out_of_traces(
    header: str | None, fields: dict[str, Any], traced: bool
) -> None:
    pool = Pool()
    headers = {} if header is None else {"X-EvoSpec-Trace": header}
    asked = {**HELLO, **fields, "n": 2}
    call(pool, lambda client: client.post("/v1/chat/completions", json=asked, headers=headers))
    assert [request.trace for request in pool.requests] == [traced, traced]


def test_a_wish_that_nobody_understands_is_not_taken_as_a_yes() -> None:
    pool, headers = Pool(), {"X-EvoSpec-Trace": "no"}
    response = call(pool, lambda client: client.post("/v1/chat/completions", json=HELLO, headers=headers))
    assert error(response, 400)["param"] == "x-evospec-trace"
    assert not pool.requests


# --- ids of requests, which Serve's proxy makes and sends back ---


def ask_with_id(script: Script, given: str, **fields: Any) -> httpx.Response:
    headers = {"x-request-id": given.encode("latin-1")}
    asked = {**HELLO, **fields}
    return call(Pool(script), lambda client: client.post("/v1/chat/completions", json=asked, headers=headers))


@pytest.mark.parametrize(
    ("given", "logged"), [("trace-7:a/b.c", "trace-7:a/b.c"), ('a b\t"é', "a_b___"), ("x" * 200, "x" * 128)]
)
def test_a_bug_is_logged_with_the_id_made_fit_for_logs(
    given: str, logged: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.ERROR):
        assert error(ask_with_id([ValueError("boom")], given), 500)["code"] == "internal_error"
    assert f"request {logged} failed" in caplog.text


def test_a_bug_in_a_stream_is_logged_with_the_id(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.ERROR):
        response = ask_with_id([chunk("H"), ValueError("boom")], "mine", stream=True)
    assert events(response)[-1]["error"]["code"] == "internal_error"
    assert "request mine failed while it was streamed" in caplog.text


def test_a_lost_replica_is_logged_with_the_id(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        ask_with_id([chunk("H"), ReplicaLostError("died")], "mine")
    assert "request mine was lost while it ran" in caplog.text


@pytest.mark.parametrize(
    ("host", "local"),
    [("127.0.0.1", True), ("::1", True), ("localhost", True), ("0.0.0.0", False), ("example.org", False)],  # noqa: S104
)
def test_what_only_this_machine_reaches(host: str, local: bool) -> None:
    assert is_local(host) == local
