"""Parts that decode prompts: the headline, sampling, batches, trees and peers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from math import isinf

from evospec.bench.batches import first_of_each_domain
from evospec.bench.command import shown_turns
from evospec.bench.decode import DecodeBench
from evospec.bench.measure import Batch, Turn
from evospec.bench.paper.lineup import EVOSPEC, PEERS
from evospec.bench.paper.state import LEFT_OUT
from evospec.bench.paper.work import Work
from evospec.bench.results import FULL, Results
from evospec.bench.settings import DecodeSettings
from evospec.bench.turn_speed import TurnSpeed

_PROFILE_PASSES = 3  # of a batch of each domain: unwatched, watched, and what captures graphs
_CHECKS_S = 10.0  # holding outputs against the target, and writing files
_SLOWER = 1.2  # than the first batch, others may be


def headline(work: Work) -> Results:
    """All arms of our engine: greedy chains, one request at a time."""
    return run_decoding(work, work.settings.decode(work.lineup.headline, profile=True))


def sampled(work: Work) -> Results:
    return run_decoding(
        work, work.settings.decode(work.lineup.contest, temperature=1.0, limit=work.settings.few)
    )


def batched(work: Work, batch: int) -> Results:
    """Chains, and what `auto` makes of them."""
    settings, lineup = work.settings, work.lineup
    policies = (*lineup.contest, f"{lineup.both}@auto")
    return run_decoding(work, settings.decode(policies, batch=batch, limit=max(settings.batches)))


def trees(work: Work) -> Results:
    """Trees and the controller, beside chains."""
    lineup = work.lineup
    drafted = (FULL, lineup.reference, EVOSPEC, lineup.both)
    policies = [f"{policy}@{way}" for policy in dict.fromkeys(drafted) for way in ("chain", "tree")]
    auto = (f"{lineup.reference}@auto", f"{lineup.both}@auto")
    return run_decoding(work, work.settings.decode((*policies, *auto), limit=work.settings.few))


def peers(work: Work) -> Results:
    """Transformers' own generation, over the same weights."""
    lineup = work.lineup
    policies = (*dict.fromkeys((lineup.reference, EVOSPEC, lineup.both)), *PEERS)
    return run_decoding(work, work.settings.decode(policies, limit=work.settings.peers))


def run_decoding(work: Work, settings: DecodeSettings) -> Results:
    """A decode bench within the call's time.

    Raises:
        OutOfTimeError: the part is given up.
        EvoSpecError: an arm or prompt file is not usable.
    """
    return measured(work, DecodeBench.of(settings_with(work, settings), work.models))


def settings_with(work: Work, settings: DecodeSettings) -> DecodeSettings:
    """With the adapters that were learned."""
    chosen = tuple(
        (name, file)
        for name, file in work.adapters
        if any(f"+{name}" in policy for policy in settings.policies)
    )
    return replace(settings, adapters=chosen)


def measured(work: Work, bench: DecodeBench) -> Results:
    """With fewer prompts of each domain where time is short; `left_out` says how many batches that are."""
    planned = len(bench.batches)
    turns = timed(work, bench, may_shorten=True)
    results = bench.results(turns)
    settings = {**results.settings, LEFT_OUT: planned - len(bench.batches)}
    return results.model_copy(update={"settings": settings, "turns": speeds(turns, bench.settings.batch)})


def timed(work: Work, bench: DecodeBench, *, may_shorten: bool) -> list[Turn]:
    """The turns that count; cycles are broken down after them where the settings say so."""
    clock = work.clock
    with work.console.status("warming up"):
        bench.warm_up()
    clock.check(0.0)
    lessons = len(bench.lessons) * len(bench.learners)
    count = lessons + bench.turn_count
    for _ in shown_turns(clock.within(bench.learn(), 0, count), lessons, work.console):
        pass
    began = clock.seconds
    turns = list(clock.within(bench.turns(bench.batches[:1]), lessons, count))
    if may_shorten:
        bench.batches = affordable(bench, clock.left, clock.seconds - began)
    rest = bench.turns(bench.batches[1:])
    count = lessons + bench.turn_count
    turns += shown_turns(
        clock.within(rest, lessons + len(turns), count), bench.turn_count - len(turns), work.console
    )
    if bench.settings.profile:
        with work.console.status("breaking cycles down"):
            bench.profile()
    return turns


def affordable(bench: DecodeBench, left: float, seconds: float) -> list[Batch]:
    """The batches there is time for: as many of each domain, and never none.

    Args:
        left: seconds, infinite without a limit; `seconds`: what the first batch took all arms.
    """
    if isinf(left):
        return bench.batches
    domains = first_of_each_domain(bench.batches)
    passes = _PROFILE_PASSES * len(domains) if bench.settings.profile else 1
    number = int((left - _CHECKS_S) / (_SLOWER * seconds) - passes) // len(domains)
    kept: list[Batch] = []
    for domain in domains:
        kept += [batch for batch in bench.batches if batch.domain == domain][: max(1, number)]
    return kept


def speeds(turns: Sequence[Turn], batch: int) -> tuple[TurnSpeed, ...]:
    return tuple(
        TurnSpeed(
            arm=turn.arm,
            domain=turn.batch.domain,
            batch=batch,
            number=turn.batch.number,
            tokens=turn.tokens,
            seconds=turn.seconds,
            decode_tokens=turn.tokens - turn.first_tokens,
            decode_seconds=turn.seconds - turn.prompt_seconds,
        )
        for turn in turns
    )
