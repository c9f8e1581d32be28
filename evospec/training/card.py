"""README.md of a trained drafter, so that its folder can be shared as it is."""

from __future__ import annotations

from pathlib import Path

from evospec.training.curve import short_count
from evospec.training.disk import write_text
from evospec.training.provenance import Provenance, TrainingResult

FILE = "README.md"


def write_card(provenance: Provenance, folder: Path) -> None:
    write_text(folder / FILE, render_card(provenance))


def render_card(provenance: Provenance) -> str:
    """Markdown: what it is, what went in, how good it is, how to use it, and under which terms."""
    target = provenance.target.name
    rows = [
        ("made by", f"`evospec train`, EvoSpec {provenance.evospec}, {_hardware(provenance)}"),
        ("finished", provenance.finished_at),
        ("data", _data(provenance)),
        ("training", _training(provenance)),
        *_figures(provenance.result),
        ("licence", _licence(provenance)),
    ]
    if provenance.initial is not None:
        rows.insert(2, ("began with", f"the weights of {provenance.initial.name}"))
    table = "\n".join(f"| {name} | {text} |" for name, text in rows)
    return f"""# Drafter for {target}

An EAGLE-3 drafter (one decoder layer, {short_count(provenance.parameters)} parameters, bfloat16) for
EvoSpec. It uses the target's own embeddings and LM head, and fits this target only (fingerprint
`{provenance.target.fingerprint}`).

| | |
|---|---|
{table}

All settings, the data manifest and the machine are in `provenance.json`.

```
evospec generate --target {target} --drafter FOLDER --prompt "Why is the sky blue?"
```
"""


def _hardware(provenance: Provenance) -> str:
    machine = provenance.machine
    if provenance.device == "cuda":
        return f"one {machine.gpu}, {provenance.dtype}"
    return f"{machine.cores} CPU cores, {provenance.dtype}"


def _data(provenance: Provenance) -> str:
    data = provenance.data
    parts = [
        f"{source.name} ({source.kind}, {short_count(source.tokens)} tokens)"
        for source in data.sources
        if source.tokens
    ]
    return f"{short_count(data.tokens)} tokens in {data.documents:,} documents: {', '.join(parts)}"


def _training(provenance: Provenance) -> str:
    result, plan = provenance.result, provenance.training
    loss = f"LK loss (eta {plan.focus:g})" if plan.focus else "forward KL"
    return (
        f"{result.optimizer_steps:,} steps, {short_count(result.trained_tokens)} tokens in "
        f"{result.minutes:.1f} minutes; {plan.steps} draft steps unrolled, {loss} over the whole "
        "vocabulary"
    )


def _figures(result: TrainingResult) -> list[tuple[str, str]]:
    if result.acceptance_length is None:
        return [("acceptance length", "not measured: no conversations were held out")]
    kind = "conversations of the target" if result.held_out_kind == "on-policy" else "documents"
    steps = " ".join(f"{value:.2f}" for value in result.acceptance_by_step)
    figures = [
        (
            "acceptance length",
            f"{result.acceptance_length:.2f} tokens per cycle: greedy chains of "
            f"{len(result.acceptance_by_step)}, teacher-forced on {result.held_out} held-out {kind}",
        ),
        ("accepted to each step", steps),
    ]
    half, gain = result.half_way, result.last_doubling
    if half is not None and gain is not None:
        figures.append(
            (
                "last doubling",
                f"{gain:+.2f} from {short_count(half.tokens)} to {short_count(result.trained_tokens)} tokens "
                "(the decay of the learning rate included)",
            )
        )
    return figures


def _licence(provenance: Provenance) -> str:
    licence = provenance.target.licence
    terms = f"those of the target ({licence})" if licence else "those of the target"
    return f"the weights were learnt from the target: {terms} apply, and those of the data above"
