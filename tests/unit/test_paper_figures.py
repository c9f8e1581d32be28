"""What a paper report says: ratios, SlimSpec's model, bars and their causes, best static list, repeats."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evospec.bench.paper.bars import best_static, speed_bars
from evospec.bench.paper.causes import cause_of
from evospec.bench.paper.diff import compare
from evospec.bench.paper.domains import headline_domains
from evospec.bench.paper.gains import gain_of, modelled_gain
from evospec.bench.paper.lineup import Lineup
from evospec.bench.paper.measured import Paper
from evospec.bench.paper.names import HEADLINE, in_order
from evospec.bench.paper.report import render_paper
from evospec.bench.paper.settings import PaperSettings
from evospec.bench.paper.view import PartView
from evospec.bench.results import Breakdown, Results
from evospec.bench.turn_speed import TurnSpeed
from tests.unit.bench_kit import MACHINE, run_of

SETTINGS = PaperSettings("tiny", (), statics=(32_768, 8_192))
DOMAINS = ("general", "code", "law")
positive = st.floats(0.01, 100)


def breakdown(head: float, host: float = 0.1) -> Breakdown:
    return Breakdown(
        cycles={"chain-5": 10},
        cycle_ms=1.0 + head + host,
        watched_ms=1.2 + head,
        draft_layer_ms=0.2,
        draft_head_ms=head,
        target_layers_ms=0.6,
        target_head_ms=0.2,
        vocabulary_ms=0.0,
        host_ms=host,
    )


# Arm: tokens per cycle, milliseconds of the head, speed lost between cycles.
ARMS = {
    "plain": (1.0, 0.0, 1.0),
    "full": (3.0, 0.9, 1.0),
    "fr-spec:32768": (2.8, 0.2, 1.0),
    "fr-spec:8192": (2.7, 0.05, 1.0),
    "vocabtrim:32768": (2.8, 0.2, 1.0),
    "nanospec": (2.9, 0.05, 0.8),
    "evospec": (3.0, 0.05, 1.0),
    "evospec+aligned": (3.6, 0.05, 1.0),
}


def part(slower: dict[str, float] | None = None, failed: str | None = None) -> Results:
    """Two batches a domain; the second is half as fast for every arm."""
    runs, turns = [], []
    for domain in DOMAINS:
        for arm, (length, head, kept) in ARMS.items():
            parts = breakdown(head) if arm != "plain" else breakdown(0.0)
            speed = kept * (slower or {}).get(arm, 1.0) * length / parts.cycle_ms
            status = {"status": "failed", "failure": "token 3 is 7"} if arm == failed else {}
            runs.append(
                run_of(
                    arm.partition("+")[0],
                    domain,
                    label=arm,
                    arm="aligned" if "+" in arm else "none",
                    drafting=None if arm == "plain" else "chain",
                    tokens_per_cycle=length,
                    acceptance_length=length,
                    cycle_ms=parts.cycle_ms,
                    breakdown=parts,
                    part=HEADLINE,
                    **status,
                )
            )
            for number, share in enumerate((1.0, 0.5)):
                seconds = 0.1 / (speed * share)
                turns.append(
                    TurnSpeed(
                        part=HEADLINE,
                        arm=arm,
                        domain=domain,
                        batch=1,
                        number=number,
                        tokens=100,
                        seconds=seconds,
                        decode_tokens=100,
                        decode_seconds=seconds,
                    )
                )
    settings = {"dtype": "float32", "device": "cpu", "paper": SETTINGS.described()}
    return Results(machine=MACHINE, git="unknown", settings=settings, runs=tuple(runs), turns=tuple(turns))


@pytest.fixture(scope="module")
def view() -> PartView:
    return PartView(part())


LINEUP = Lineup.of(SETTINGS, ("aligned",))


@given(rho=positive, kappa=positive, nu=st.floats(0.0, 1.0))
def test_slimspecs_model_is_a_ratio_of_cycles(rho: float, kappa: float, nu: float) -> None:
    other, head = 2.0, 2.0 * kappa
    expected = rho * (other + head) / (other + nu * head)
    assert modelled_gain(rho=rho, kappa=kappa, nu=nu) == pytest.approx(expected)


@given(rho=positive, kappa=positive)
def test_an_equal_head_gains_what_acceptance_does(rho: float, kappa: float) -> None:
    assert modelled_gain(rho=rho, kappa=kappa, nu=1.0) == pytest.approx(rho)


def test_ratios_are_of_the_same_batches(view: PartView) -> None:
    ratio = view.ratio("evospec", "full", view.headline)
    assert ratio is not None
    assert ratio.value == pytest.approx(2.0 / 1.15)
    assert (ratio.low, ratio.high) == (pytest.approx(ratio.value), pytest.approx(ratio.value))
    assert ratio.batches == 4  # two domains, general not among them
    assert view.ratio("evospec", "nothing", view.headline) is None


def test_the_headline_leaves_general_out_unless_it_is_all_there_is() -> None:
    assert headline_domains(["general", "law", "code", "law"]) == ("law", "code")
    assert headline_domains(["general"]) == ("general",)


def test_model_and_measurement_agree_where_nothing_else_costs_time(view: PartView) -> None:
    gain = gain_of(view, "evospec", view.headline)
    assert gain is not None
    assert (gain.rho, gain.nu) == (pytest.approx(1.0), pytest.approx(0.05 / 0.9))
    assert gain.kappa == pytest.approx(0.9 / 1.1)
    assert gain.agrees
    assert gain.between_cycles == pytest.approx(1.0)


def test_what_is_lost_between_cycles_is_told(view: PartView) -> None:
    gain = gain_of(view, "nanospec", view.headline)
    assert gain is not None
    assert not gain.agrees
    assert gain.between_cycles == pytest.approx(0.8)
    assert "- NanoSpec: the model is +25.0% off" in render_paper(Paper.of({HEADLINE: part()}), [])


def test_the_best_static_list_is_the_fastest_on_what_is_reported(view: PartView) -> None:
    assert best_static(view, LINEUP) == "fr-spec:8192"  # 2.7 / 1.15 beats 2.8 / 1.3
    slow = PartView(part(slower={"fr-spec:8192": 0.5}))
    assert best_static(slow, LINEUP) == "fr-spec:32768"
    only = PartView(part(failed="fr-spec:8192"))
    assert best_static(only, LINEUP) == "fr-spec:32768"


def test_bars_are_held_against_evospec_as_a_whole() -> None:
    bars = {bar.against: bar for bar in speed_bars({HEADLINE: part()}, LINEUP)}
    assert bars["fr-spec:32768"].met
    assert bars["fr-spec:32768"].measured is not None
    assert bars["fr-spec:32768"].measured.value == pytest.approx(3.6 / 1.15 / (2.8 / 1.3))
    assert bars["fr-spec:8192"].needed == 1.15
    assert bars["full"].met
    assert bars["plain"].met
    assert [bar.needed for bar in bars.values()] == [1.25, 1.15, 1.10, 1.6, 2.0]


def test_a_missed_bar_comes_with_its_cause() -> None:
    results = part(slower={"evospec+aligned": 0.8})
    bars = {bar.against: bar for bar in speed_bars({HEADLINE: results}, LINEUP)}
    bar = bars["fr-spec:32768"]
    assert bar.met is False
    assert bar.short == pytest.approx(1 - 0.8 * 3.6 / 1.15 / (2.8 / 1.3) / 1.25)
    cause = bar.cause
    assert cause is not None
    assert (cause.length, cause.cycle) == (pytest.approx(3.6 / 2.8), pytest.approx(1.3 / 1.15))
    assert cause.between == pytest.approx(0.8)
    assert cause.longer["draft head"] == pytest.approx(-0.15)
    assert cause.without_head == pytest.approx(cause.ratio * 1.15 / 1.1)
    assert cause.length_for(1.25) == pytest.approx(3.6 / 2.8 * 1.25 / cause.ratio)
    report = render_paper(Paper.of({HEADLINE: results}), [])
    assert "**missed**, 14.0% short" in report.replace(f"{bar.short:.1%}", "14.0%")
    assert "0.800 is kept between cycles" in report
    assert "draft head -150" in report


@given(st.sampled_from(sorted(ARMS)), st.sampled_from(sorted(ARMS)))
def test_causes_multiply_to_the_ratio(own: str, base: str) -> None:
    view = PartView(part())
    cause = cause_of(view, own, base, view.headline)
    assert cause is not None
    assert cause.length * cause.cycle * cause.between * cause.prompts == pytest.approx(cause.ratio)


def test_an_arm_that_is_not_exact_meets_no_bar() -> None:
    results = part(failed="evospec+aligned")
    bars = speed_bars({HEADLINE: results}, LINEUP)
    assert all(bar.met is None and bar.failure == "token 3 is 7" for bar in bars)
    report = render_paper(Paper.of({HEADLINE: results}), [])
    assert "**FAILED**: evospec+aligned in headline: token 3 is 7" in report
    assert "| EvoSpec | `evospec+aligned` | FAILED |" in report


def test_bars_without_a_measurement_are_open() -> None:
    assert all(bar.met is None for bar in speed_bars({}, LINEUP))


def test_two_runs_are_compared_arm_by_arm() -> None:
    first, second = {HEADLINE: part()}, {HEADLINE: part(slower={"evospec": 1.1})}
    changes = {one.arm: one.change for one in compare(first, second)}
    assert changes.pop("evospec") == pytest.approx(0.1)
    assert all(abs(change) < 1e-9 for change in changes.values())
    assert "fr-spec:32768" not in changes
    report = render_paper(Paper.of(first, second), [])
    assert "| ratios of the same command twice | 3% apart at most | 10.0% | **missed** |" in report


def test_parts_are_shown_in_the_order_in_which_they_run() -> None:
    shuffled = dict.fromkeys(("timing-x", "batch-32", "memory", "batch-8", "headline", "learn"), part())
    assert list(in_order(shuffled)) == ["learn", "headline", "batch-8", "batch-32", "memory", "timing-x"]
