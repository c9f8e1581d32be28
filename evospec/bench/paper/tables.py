"""Tables of a paper report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial

from evospec.bench.markdown import number, table
from evospec.bench.paper.bars import SpeedBar
from evospec.bench.paper.gains import PARTS, Gain, broken_down_ms, part_of
from evospec.bench.paper.view import PartView, Ratio
from evospec.bench.report import output_cell
from evospec.bench.results import PLAIN, Run


def bars_table(bars: Sequence[SpeedBar], others: Sequence[tuple[str, str, str, bool | None]]) -> str:
    """Args: others: bars that are not speeds: what, needed, measured, whether it is met."""
    rows = []
    for bar in bars:
        measured = "-" if bar.measured is None else f"{bar.measured.value:.3f}x{_spread(bar.measured)}"
        rows.append((f"tokens/s of {bar.text}", f"{bar.needed:.2f}x", measured, _verdict(bar)))
    for what, needed, found, met in others:
        rows.append((what, needed, found, {True: "met", False: "**missed**", None: "not measured"}[met]))
    return table(("bar", "needed", "measured (quartiles over turns)", "verdict"), rows)


def arms_table(view: PartView, reference: str, titles: Mapping[str, str]) -> str:
    """All arms of a part, means over its headline domains."""
    domains = view.headline
    header = ("arm", "", "tokens/s", f"by {reference}", "(quartiles)", "decode alone", "by plain")
    more = (
        "τ",
        "of full τ",
        "active rows",
        "coverage",
        "cycle ms",
        "head µs",
        "head of a cycle",
        "output",
    )
    return table(
        (*header, *more), [_arm(view, arm, reference, titles, domains) for arm in view.arms], numeric_from=2
    )


def domains_table(view: PartView, reference: str, titles: Mapping[str, str]) -> str:
    """tokens/s by the reference's, and τ, by domain."""
    header = ("arm", *(label for domain in view.domains for label in (domain, "τ")))
    rows = []
    for arm in view.arms:
        cells = [titles.get(arm, arm)]
        for domain in view.domains:
            ratio = view.ratio(arm, reference, [domain])
            cells.append("-" if ratio is None else f"{ratio.value:.2f}{_spread(ratio)}")
            cells.append(number(view.mean(arm, [domain], _length), ".2f"))
        rows.append(cells)
    return table(header, rows)


def gains_table(gains: Sequence[Gain], titles: Mapping[str, str]) -> str:
    header = (
        "arm",
        "rho",
        "kappa",
        "nu",
        "predicted",
        "measured",
        "apart",
        "whole cycles say",
        "kept between cycles",
    )
    return table(header, [_gain(gain, titles) for gain in gains])


def gain_reasons(gains: Sequence[Gain], titles: Mapping[str, str]) -> str:
    """What else costs time, where model and measurement are more than 5 % apart."""
    lines = []
    for gain in gains:
        if gain.agrees:
            continue
        longer = sorted(gain.others.items(), key=lambda entry: -abs(entry[1]))
        told = ", ".join(f"{label} {1000 * ms:+.0f}" for label, ms in longer[:3])
        lines.append(
            f"- {titles.get(gain.arm, gain.arm)}: the model is {gain.gap:+.1%} off. Other parts of a cycle, "
            f"µs longer than the full vocabulary's: {told}. Between cycles {gain.between_cycles:.3f} is kept."
        )
    return "\n".join(lines) + "\n" if lines else "Model and measurement agree within 5 % for every arm.\n"


def cycles_table(view: PartView, titles: Mapping[str, str]) -> str:
    """Parts of a cycle, means over the headline's domains."""
    rows = []
    for arm in view.arms:
        runs = [run for run in view.runs(arm, view.headline) if run.breakdown is not None]
        if not runs:
            continue
        cells = [titles.get(arm, arm)]
        for label in PARTS.values():
            mean = view.mean(arm, view.headline, partial(part_of, label=label))
            cells.append(number(mean, ".3f"))
        cells.append(number(view.mean(arm, view.headline, broken_down_ms), ".3f"))
        cells.append(number(view.mean(arm, view.headline, _cycle), ".3f"))
        rows.append(cells)
    return table(("ms of", *PARTS.values(), "together", "timed cycle"), rows)


def _arm(
    view: PartView, arm: str, reference: str, titles: Mapping[str, str], domains: Sequence[str]
) -> tuple[str, ...]:
    runs = view.runs(arm, domains)
    reason = view.failed(arm)
    if reason is not None:
        return (titles.get(arm, arm), f"`{arm}`", "FAILED", *["-"] * 11, "WRONG")
    whole = view.ratio(arm, reference, domains)
    decode = view.ratio(arm, reference, domains, decoding=True)
    plain = view.ratio(arm, PLAIN, domains)
    drafts = any(run.drafting is not None for run in runs)
    head = view.mean(arm, domains, partial(part_of, label="draft head")) if drafts else None
    cycle = view.mean(arm, domains, broken_down_ms)
    return (
        titles.get(arm, arm),
        f"`{arm}`",
        number(view.mean(arm, domains, lambda run: run.tokens_per_s), ",.0f"),
        "-" if whole is None else f"{whole.value:.3f}",
        "-" if whole is None else f"{whole.low:.2f} to {whole.high:.2f}",
        "-" if decode is None else f"{decode.value:.3f}",
        "-" if plain is None else f"{plain.value:.2f}",
        number(view.mean(arm, domains, _length), ".2f"),
        number(view.mean(arm, domains, lambda run: run.share_of_full) if drafts else None, ".1%"),
        number(view.mean(arm, domains, lambda run: run.active_rows) if drafts else None, ",.0f"),
        number(view.mean(arm, domains, lambda run: run.coverage) if drafts else None, ".3f"),
        number(view.mean(arm, domains, _cycle), ".3f"),
        number(view.mean(arm, domains, lambda run: run.head_us), ".1f"),
        number(None if not head or not cycle else head / cycle, ".1%"),
        _outputs(runs),
    )


def _outputs(runs: Sequence[Run]) -> str:
    cells = list(dict.fromkeys(output_cell(run) for run in runs))
    ties = sum(run.near_ties for run in runs)
    return f"{ties} near-ties" if ties else ", ".join(cells)


def _gain(gain: Gain, titles: Mapping[str, str]) -> tuple[str, ...]:
    apart = f"{gain.gap:+.1%}" if gain.agrees else f"**{gain.gap:+.1%}**"
    values = (gain.rho, gain.kappa, gain.nu, gain.predicted, gain.measured)
    shown = [f"{value:.3f}" for value in values]
    return (
        titles.get(gain.arm, gain.arm),
        *shown,
        apart,
        f"{gain.by_cycles:.3f}",
        f"{gain.between_cycles:.3f}",
    )


def _verdict(bar: SpeedBar) -> str:
    if bar.met is None:
        return bar.failure or "not measured"
    return f"met, {-bar.short:.1%} above" if bar.met else f"**missed**, {bar.short:.1%} short"


def _spread(ratio: Ratio) -> str:
    return f" ({ratio.low:.2f} to {ratio.high:.2f})"


def _length(run: Run) -> float | None:
    return run.tokens_per_cycle


def _cycle(run: Run) -> float | None:
    return run.cycle_ms
