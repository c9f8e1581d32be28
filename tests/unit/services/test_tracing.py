"""Traces of requests."""

from __future__ import annotations

import asyncio

import httpx
import pytest
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import StatusCode

from services.tracing import TracedRequests, TracingError, tracer_from
from tests.unit.services.gateway_kit import HELLO, Pool, api

TRACE = "0af7651916cd43dd8448eb211c80319c"


def span_of(path: str, *, pool: Pool | None = None, body: object = HELLO) -> ReadableSpan:
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))

    async def run() -> None:
        app = TracedRequests(api(pool or Pool()), provider.get_tracer("test"))
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        headers = {"traceparent": f"00-{TRACE}-b7ad6b7169203331-01", "X-Request-Id": "mine"}
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            await client.post(path, json=body, headers=headers)

    asyncio.run(run())
    (span,) = exporter.get_finished_spans()
    return span


def test_a_request_is_a_span_of_its_clients_trace() -> None:
    span = span_of("/v1/chat/completions", body={**HELLO, "stream": True})
    assert span.name == "POST /v1/chat/completions"
    assert span.context is not None
    assert f"{span.context.trace_id:032x}" == TRACE
    assert span.attributes is not None
    assert span.attributes["http.response.status_code"] == 200
    assert span.attributes["evospec.request_id"] == "mine"
    assert [event.name for event in span.events] == ["first byte"]
    assert "Hi" not in span.to_json()


def test_paths_that_anybody_can_think_of_are_one() -> None:
    assert span_of("/secret/place").name == "POST other"


def test_what_fails_is_marked() -> None:
    pool = Pool()
    pool.limits_error = RuntimeError("broken")
    assert span_of("/v1/chat/completions", pool=pool).status.status_code is StatusCode.ERROR


@pytest.mark.parametrize(
    "environment",
    [{}, {"OTEL_TRACES_EXPORTER": "none"}, {"OTEL_TRACES_EXPORTER": "otlp", "OTEL_SDK_DISABLED": "true"}],
)
def test_nothing_is_traced_unless_asked_for(environment: dict[str, str]) -> None:
    assert tracer_from(environment) is None


def test_other_exporters_are_refused_by_name() -> None:
    with pytest.raises(TracingError, match="zipkin"):
        tracer_from({"OTEL_TRACES_EXPORTER": "zipkin"})
