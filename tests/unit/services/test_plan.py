"""A plan grows with its load, loses nothing between its parts, and says what runs out first."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evospec.config import AlignmentConfig, Config, SemanticConfig
from services.plan.accelerators import ACCELERATORS
from services.plan.errors import PlanError
from services.plan.planner import Plan, plan, scaled
from services.plan.question import Hardware, Load, Question
from services.plan.queueing import Queue
from tests.unit.services.plan_kit import question, questions


def times(asked: Question, factor: float) -> Question:
    return replace(asked, load=replace(asked.load, requests_per_s=factor * asked.load.requests_per_s))


@settings(deadline=None, max_examples=60)
@given(questions(), st.floats(1, 50))
def test_more_load_never_takes_less(asked: Question, factor: float) -> None:
    little, much = plan(asked), plan(times(asked, factor))
    assert much.decoding.replicas >= little.decoding.replicas
    assert much.decoding.tokens_per_s >= little.decoding.tokens_per_s
    assert much.index.lookups_per_s >= little.index.lookups_per_s
    assert much.index.points >= little.index.points
    assert much.gateway.pieces_per_s >= little.gateway.pieces_per_s - 1e-6
    assert much.registry.calls_per_s >= little.registry.calls_per_s
    assert much.traces.mb_s >= little.traces.mb_s * (1 - 1e-9)


@settings(deadline=None, max_examples=60)
@given(questions())
def test_replicas_are_no_busier_than_they_may_be_and_not_one_too_many(asked: Question) -> None:
    made = plan(asked).decoding
    assert made.utilisation <= asked.utilisation + 1e-9
    assert made.wait_95_s <= asked.max_wait_s
    assert made.under_way <= made.replicas * made.batch
    if made.replicas > 1:
        servers = (made.replicas - 1) * made.batch
        service_s = made.under_way / asked.load.requests_per_s
        factor = (asked.load.burstiness + asked.load.variation) / 2
        busier = asked.load.requests_per_s / ((made.replicas - 1) * made.most_requests_per_s)
        late = Queue(servers, made.under_way, service_s, factor).wait_s(0.95) > asked.max_wait_s
        assert busier > asked.utilisation or late


@settings(deadline=None, max_examples=60)
@given(questions())
def test_nothing_is_made_or_lost_on_the_way(asked: Question) -> None:
    made = plan(asked)
    load, traces = asked.load, made.traces
    budget = asked.config.alignment.trace_mb_per_s * 2**20 / 1e6
    assert traces.recorded_share <= asked.traced + 1e-9
    assert traces.replica_mb_s <= budget + 1e-9
    assert traces.mb_s == pytest.approx(traces.replica_mb_s * made.decoding.replicas)
    assert traces.mb_s == pytest.approx(traces.requests_per_s * traces.mb_per_request)
    assert made.aligner.updates_per_s <= made.aligner.wanted_updates_per_s + 1e-9
    assert made.aligner.gpu_share <= 1 + 1e-9
    waves = made.registry.first_wave + made.registry.second_wave
    assert waves == made.decoding.replicas
    assert made.registry.version_traffic_mb == pytest.approx(waves * made.registry.version_mb)
    assert made.index.lookups_per_s >= load.requests_per_s
    assert made.decoding.tokens_per_s <= made.decoding.most_tokens_per_s


@settings(deadline=None, max_examples=40)
@given(questions())
def test_better_drafts_and_bursts_count(asked: Question) -> None:
    better = replace(asked, acceptance=min(asked.acceptance * 1.5, 6.0))
    calm = replace(asked, load=replace(asked.load, burstiness=asked.load.burstiness / 2))
    made = plan(asked).decoding
    assert plan(better).decoding.replicas <= made.replicas
    assert plan(calm).decoding.replicas <= made.replicas


def test_the_advised_trace_budget_does_what_it_says() -> None:
    busy = plan(question(rate=5_000))
    advised = busy.aligner.advised_trace_mb_per_s
    assert busy.aligner.load > 1
    assert busy.aligner.learned_share < 1
    assert advised is not None
    calmer = Config(alignment=AlignmentConfig(trace_mb_per_s=advised))
    eased = plan(replace(question(rate=5_000), config=calmer))
    assert eased.aligner.load == pytest.approx(0.7, rel=0.05)
    assert eased.aligner.learned_share == 1


def test_up_to_a_thousand_replicas_each_has_as_much_to_do() -> None:
    base = plan(question())
    clusters = scaled(base)
    assert [one.decoding.replicas for one in clusters] == [1, 10, 100, 1_000]
    for one in clusters:
        assert one.decoding.utilisation == pytest.approx(base.decoding.utilisation)
        assert one.traces.replica_mb_s == pytest.approx(base.traces.replica_mb_s)
    assert clusters[-1].registry.pull_s > clusters[0].registry.pull_s


def test_what_answers_need_decides_whether_it_fits() -> None:
    enough = plan(question(rate=200, hardware=Hardware(gpus=100)))
    assert enough.fits
    scarce = plan(question(rate=2_000, hardware=Hardware(gpus=2)))
    assert not scarce.fits
    assert {one.name for one in scarce.limits if one.share > 1} >= {"GPUs"}
    assert [one.share for one in scarce.limits] == sorted((one.share for one in scarce.limits), reverse=True)


def test_what_is_off_takes_nothing() -> None:
    off = Config(alignment=AlignmentConfig(enabled=False), semantic=SemanticConfig(enabled=False))
    made = plan(replace(question(), config=off))
    assert (made.traces.mb_s, made.aligner.load, made.aligner.versions_per_hour) == (0, 0, 0)
    assert (made.index.calls_per_s, made.index.collection_mb) == (0, 0)
    assert made.decoding.most_requests_per_s > plan(question()).decoding.most_requests_per_s


def test_a_model_that_no_gpu_holds_is_refused_in_one_line() -> None:
    with pytest.raises(PlanError, match=r"^gemma-3-27b with 1 at a time takes \d+ GB, l4 has 22 to use"):
        plan(question(model="gemma-3-27b", hardware=Hardware(gpu=ACCELERATORS["l4"])))


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"acceptance": 0.5}, "acceptance is 0.5"),
        ({"acceptance": 7.0}, "emit 1 to 6 tokens"),
        ({"utilisation": 1.0}, "utilisation is 1"),
        ({"traced": 1.5}, "traced is 1.5"),
        ({"batch": 0}, "batch is 0"),
        ({"max_wait_s": 0.0}, "max_wait is 0"),
        ({"rate": 0.0}, "requests_per_s is 0"),
        ({"prompt": 3_000.0}, "engine.max_length is 2048"),
    ],
)
def test_questions_without_an_answer_are_refused(change: dict[str, float], told: str) -> None:
    with pytest.raises(PlanError, match=told):
        question(**change)


def test_waits_are_those_of_a_simulated_queue() -> None:
    """The formula is exact for random arrivals and exponential times; both are simulated here."""
    rng = np.random.default_rng(0)
    servers, rate, service_s, count = 4, 3.2, 1.0, 200_000
    arrivals = np.cumsum(rng.exponential(1 / rate, count))
    services = rng.exponential(service_s, count)
    free = np.zeros(servers)
    waits = np.empty(count)
    for number, (arrival, service) in enumerate(zip(arrivals, services, strict=True)):
        first = int(free.argmin())
        waits[number] = max(free[first] - arrival, 0.0)
        free[first] = arrival + waits[number] + service
    queue = Queue(servers, rate * service_s, service_s)
    assert queue.mean_wait_s == pytest.approx(waits.mean(), rel=0.08)
    assert queue.wait_s(0.95) == pytest.approx(np.quantile(waits, 0.95), rel=0.08)
    assert queue.waits == pytest.approx((waits > 0).mean(), rel=0.03)


def test_a_load_beyond_all_servers_waits_for_ever() -> None:
    assert Queue(2, 2.0, 1.0).mean_wait_s == float("inf")
    assert Queue(2, 3.0, 1.0).waits == 1.0


def made_of(load: Load) -> Plan:
    return plan(replace(question(), load=load))


def test_tokens_a_second_are_requests_times_answers() -> None:
    assert made_of(Load(10, 100, 50)).decoding.tokens_per_s == 500
