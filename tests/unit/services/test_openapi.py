"""The OpenAPI document says what the endpoints really take and answer: schemathesis tries it out."""

from __future__ import annotations

import pytest
import schemathesis
from hypothesis import given, settings
from schemathesis import GenerationMode, checks
from schemathesis.specs.openapi import checks as openapi_checks

from tests.unit.services.gateway_kit import Pool, api, call

CHECKS = [
    checks.not_a_server_error,
    openapi_checks.status_code_conformance,
    openapi_checks.content_type_conformance,
    openapi_checks.response_schema_conformance,
    openapi_checks.negative_data_rejection,
]


# Requests that fit the description, and bodies that break it somewhere.
ASKED = [(GenerationMode.POSITIVE, ["GET", "POST"]), (GenerationMode.NEGATIVE, ["POST"])]


@pytest.mark.parametrize(("mode", "methods"), ASKED, ids=["fitting", "breaking"])
def test_whatever_is_asked_is_answered_as_described(mode: GenerationMode, methods: list[str]) -> None:
    schema = schemathesis.openapi.from_asgi("/openapi.json", api(Pool()))
    for operation in schema.include(method=methods).get_all_operations():

        @settings(max_examples=40, derandomize=True, database=None)
        @given(operation.ok().as_strategy(generation_mode=mode))
        def ask(case: schemathesis.Case) -> None:
            case.call_and_validate(checks=CHECKS)

        ask()


def test_every_route_and_its_errors_are_described() -> None:
    document = call(Pool(), lambda client: client.get("/openapi.json")).json()
    assert document["paths"].keys() == {
        "/health",
        "/v1/models",
        "/v1/models/{model}",
        "/v1/chat/completions",
        "/v1/completions",
        "/admin/status",
    }
    chat = document["paths"]["/v1/chat/completions"]["post"]
    assert chat["responses"].keys() == {"200", "400", "401", "404", "408", "413", "429", "500", "503"}
    assert chat["responses"]["200"]["content"].keys() == {"application/json", "text/event-stream"}
    body = document["components"]["schemas"]["ChatBody"]
    assert {"messages", "n", "logprobs", "top_logprobs", "stop", "trace"} <= body["properties"].keys()
    assert body["additionalProperties"] is False
    assert document["paths"]["/health"]["get"]["security"] == []
