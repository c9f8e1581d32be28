"""From answers to a load run's result rows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import pairwise

import numpy as np

from services.load.generator import Sent
from services.load.results import Failure, LoadRequest, LoadRun, Percentiles

ALL = "all"


def percentiles(values: Iterable[float | None]) -> Percentiles | None:
    """None of no values; values that are None are left out."""
    known = np.asarray([value for value in values if value is not None], dtype=np.float64)
    if not known.size:
        return None
    p50, p90, p95, p99 = (float(value) for value in np.percentile(known, [50, 90, 95, 99]))
    return Percentiles(
        count=known.size,
        mean=float(known.mean()),
        p50=p50,
        p90=p90,
        p95=p95,
        p99=p99,
        largest=float(known.max()),
    )


def records(sent: Sequence[Sent]) -> tuple[LoadRequest, ...]:
    """In the order in which they were due; times from the first of them."""
    began = min((one.due for one in sent), default=0.0)
    return tuple(_record(one, began) for one in sorted(sent, key=lambda one: one.place))


def summarise(requests: Sequence[LoadRequest], *, streamed: bool) -> tuple[LoadRun, ...]:
    """All domains together, then each, in order of first appearance, where there are several."""
    domains = list(dict.fromkeys(request.domain for request in requests))
    parts = [(ALL, list(requests))]
    if len(domains) > 1:
        parts += [(domain, [one for one in requests if one.domain == domain]) for domain in domains]
    return tuple(_run(domain, own, streamed=streamed) for domain, own in parts)


def failures(requests: Iterable[LoadRequest]) -> tuple[Failure, ...]:
    """By status and reason, the most frequent first."""
    counts = Counter((one.status, one.error) for one in requests if one.error is not None)
    return tuple(
        Failure(status=status, reason=reason, count=count) for (status, reason), count in counts.most_common()
    )


def _record(sent: Sent, began: float) -> LoadRequest:
    answer = sent.answer
    return LoadRequest(
        prompt=sent.prompt.id,
        domain=sent.prompt.domain,
        due_s=sent.due - began,
        started_s=answer.started - began,
        first_token_s=answer.pieces[0] - began if answer.pieces else None,
        finished_s=answer.finished - began,
        status=answer.status,
        prompt_tokens=answer.prompt_tokens,
        tokens=answer.tokens,
        cycles=answer.cycles,
        drafted=answer.drafted,
        accepted=answer.accepted,
        gaps_ms=tuple((after - before) * 1e3 for before, after in pairwise(answer.pieces)),
        error=answer.error,
    )


def _run(domain: str, requests: Sequence[LoadRequest], *, streamed: bool) -> LoadRun:
    done = [request for request in requests if not request.failed]
    seconds = max(one.finished_s for one in requests) - min(one.due_s for one in requests)
    drafting = [request for request in done if request.cycles]
    cycles = sum(request.cycles for request in drafting)
    drafted = sum(request.drafted for request in drafting)
    tokens = sum(request.tokens for request in done)
    return LoadRun(
        domain=domain,
        requests=len(requests),
        failed=len(requests) - len(done),
        seconds=seconds,
        prompt_tokens=sum(request.prompt_tokens for request in done),
        tokens=tokens,
        tokens_per_s=tokens / seconds,
        requests_per_s=len(done) / seconds,
        ttft_ms=percentiles(request.ttft_ms for request in done) if streamed else None,
        gap_ms=percentiles(gap for request in done for gap in request.gaps_ms),
        token_ms=percentiles(request.token_ms for request in done) if streamed else None,
        latency_ms=percentiles(request.latency_ms for request in done),
        late_ms=percentiles((request.started_s - request.due_s) * 1e3 for request in requests),
        acceptance_length=sum(one.tokens - 1 for one in drafting) / cycles if cycles else None,
        acceptance_rate=sum(one.accepted for one in drafting) / drafted if drafted else None,
    )
