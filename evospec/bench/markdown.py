"""Small pieces of Markdown that reports share."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from pydantic import JsonValue

from evospec.bench.results import Machine


def table(header: Sequence[str], rows: Iterable[Sequence[str]], *, numeric_from: int = 1) -> str:
    """A table; columns from `numeric_from` on are aligned right."""
    rule = ["---" if column < numeric_from else "---:" for column in range(len(header))]
    lines = [_row(header), _row(rule), *(_row(row) for row in rows)]
    return "\n".join(lines) + "\n"


def number(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


def machine_lines(machine: Machine, git: str) -> str:
    gpu = f"{machine.gpus} x {machine.gpu} ({machine.gpu_memory_gb:g} GB)" if machine.gpu else "none"
    bandwidth = machine.copy_gb_per_s
    copying = "" if bandwidth is None else f"- Copy bandwidth: {bandwidth:,.1f} GB/s, read and written\n"
    return (
        f"- Processor: {machine.cpu}, {machine.cores} cores, {machine.memory_gb:g} GB memory\n"
        f"- GPU: {gpu}\n"
        f"{copying}"
        f"- Software: {machine.system}, Python {machine.python}, PyTorch {machine.torch}, "
        f"transformers {machine.transformers}\n"
        f"- Source: {git}\n"
    )


def settings_table(settings: Mapping[str, JsonValue]) -> str:
    rows = [(f"`{name}`", _shown(value)) for name, value in settings.items()]
    return table(("setting", "value"), rows, numeric_from=2)


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _shown(value: JsonValue) -> str:
    if isinstance(value, list):
        return ", ".join(_shown(item) for item in value)
    return "-" if value is None else str(value)
