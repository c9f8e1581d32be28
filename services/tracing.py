"""OpenTelemetry traces of the gateway's requests, where the standard environment asks for them."""

from __future__ import annotations

import os
from collections.abc import Mapping

from opentelemetry.propagate import extract
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import SpanKind, Status, StatusCode, Tracer
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from evospec.errors import EvoSpecError
from services.request_ids import request_id_of
from services.request_metrics import OTHER, PATHS

SERVICE = "evospec"


class TracingError(EvoSpecError):
    """Traces are asked for and can't be sent."""


def tracer_from(environment: Mapping[str, str] = os.environ) -> Tracer | None:
    """A tracer that sends by OTLP, or None unless OTEL_TRACES_EXPORTER is `otlp`.

    The other variables of the standard apply: OTEL_EXPORTER_OTLP_*, OTEL_TRACES_SAMPLER, OTEL_SERVICE_NAME,
    OTEL_RESOURCE_ATTRIBUTES, OTEL_BSP_*, OTEL_SDK_DISABLED.

    Raises:
        TracingError: it names another exporter, or the packages of the extra `otel` are missing.
    """
    exporter = environment.get("OTEL_TRACES_EXPORTER", "") or "none"
    if exporter == "none" or environment.get("OTEL_SDK_DISABLED", "").lower() == "true":
        return None
    if exporter != "otlp":
        raise TracingError(f"OTEL_TRACES_EXPORTER is {exporter!r}: traces are sent by otlp only")
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    except ImportError:
        raise TracingError(
            "OTEL_TRACES_EXPORTER is set, and no exporter is installed: pip install 'evospec[otel]'"
        ) from None
    named = {} if environment.get("OTEL_SERVICE_NAME") else {"service.name": SERVICE}
    provider = TracerProvider(resource=Resource.create(named))
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    return provider.get_tracer(SERVICE)


class TracedRequests:
    """ASGI middleware: a span for each request, up to the end of a stream; part of the client's own trace.

    Attributes are those of the HTTP conventions; no text of prompts or answers.
    """

    def __init__(self, app: ASGIApp, tracer: Tracer) -> None:
        self._app = app
        self._tracer = tracer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        path = scope["path"] if scope["path"] in PATHS else OTHER
        known = {"http.request.method": scope["method"], "http.route": path}
        if request_id := request_id_of(scope):
            known["evospec.request_id"] = request_id
        with self._tracer.start_as_current_span(
            f"{scope['method']} {path}", extract(headers), SpanKind.SERVER, known
        ) as span:
            begun = False

            async def pass_on(message: Message) -> None:
                nonlocal begun
                if message["type"] == "http.response.start":
                    span.set_attribute("http.response.status_code", message["status"])
                    if message["status"] >= 500:
                        span.set_status(Status(StatusCode.ERROR))
                elif message["type"] == "http.response.body" and not begun:
                    begun = True
                    span.add_event("first byte")
                await send(message)

            await self._app(scope, receive, pass_on)
