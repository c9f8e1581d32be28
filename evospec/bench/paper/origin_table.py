"""Where the figures of a paper report are from."""

from __future__ import annotations

from evospec.bench.markdown import machine_lines, table
from evospec.bench.paper.measured import Paper
from evospec.bench.paper.state import LEFT_OUT, seconds_of
from evospec.bench.results import Results


def origin_sections(paper: Paper) -> list[str]:
    """Parts, machine and settings."""
    rows = [
        (
            name,
            str(part.settings.get("title", "")),
            f"{seconds_of(part) / 60:.1f}",
            _shortened(part),
            part.git,
            str(part.settings.get("code", "")),
        )
        for name, part in paper.parts.items()
    ]
    first = next(iter(paper.parts.values()))
    text = [
        "## Parts\n",
        table(("part", "what", "minutes", "cut short by", "source", "code"), rows, numeric_from=6),
    ]
    if len({row[-1] for row in rows}) > 1:
        text.append("**The parts were measured with different code.**\n")
    if len({(part.machine.gpu, part.machine.cpu, part.machine.torch) for part in paper.parts.values()}) > 1:
        text.append("**The parts were measured on different machines.**\n")
    paper_settings = first.settings.get("paper")
    listed = paper_settings if isinstance(paper_settings, dict) else {}
    settings = [
        (f"`{name}`", ", ".join(map(str, value)) if isinstance(value, list) else str(value))
        for name, value in listed.items()
    ]
    text += ["## Machine\n", machine_lines(first.machine, first.git)]
    return [*text, "## Settings\n", table(("setting", "value"), settings, numeric_from=2)]


def _shortened(part: Results) -> str:
    """What a part had no time for."""
    if part.alignment is not None and part.alignment.requests < part.alignment.planned:
        return f"{part.alignment.planned - part.alignment.requests} of {part.alignment.planned} requests"
    left_out = part.settings.get(LEFT_OUT)
    return f"{left_out} batches" if left_out else "-"
