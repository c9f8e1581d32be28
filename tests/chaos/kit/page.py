"""Turns the records of a run into docs/reliability.md.

Run as `python -m tests.chaos.kit.page RECORDS PAGE`; the exit code is 1 when a promise was not kept.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from evospec.bench.machine import describe_machine, git_commit
from evospec.bench.markdown import machine_lines, table
from tests.chaos.kit.record import ScenarioRecord, read_records

INTRODUCTION = """# Reliability

What fails, and what users notice of it: measured by `make chaos`, which makes this page.

Each scenario runs on a whole cluster on one machine, in real processes: Ray Serve with its HTTP proxy,
gateway and decoding replicas, aligner, rollout controller, owner of the token index, and a Valkey
server. The target is a tiny random model in float32 whose drafter has learned its answers by heart.
Clients stream greedy completions from before the fault until after it, and each token is compared
with what transformers generates without EvoSpec. As the `openai` package does, a client sends a
request again that failed before its first token.

- **failed**: the answer broke off after its first token, with an error that says so; where clients'
  own connections are cut (HTTP proxy or gateway killed), with the end of the stream.
- **retried**: attempts that a client made again, by what had ended them.
- **lost**: failed although nothing had been shown to the client.
- **wrong**: tokens that differ from the expected ones.

0 lost and 0 wrong are promised in every scenario, and checked.
"""

LIMITS = """## What this does not show

- Token index: no package carries the Qdrant server, so a stand-in answers Qdrant's REST interface from
  `qdrant-client`'s local mode. Requests, timeouts and errors cross a real socket.
- Slow networks are made with a TCP proxy before registry and token index, not in the kernel.
- Clocks: only what a publisher writes into its manifests is wrong. The clocks of processes are not
  shifted; nothing compares clocks of two machines, and the audit trail has the registry server's time.
- Ray's own head (control service and raylet) is not killed: on one machine all ends with it. For a
  cluster that survives it, see Ray's documentation of fault tolerance of the control service.
- Seconds to recover are those of one busy machine, most of them spent on loading Python and PyTorch.
"""


def render(records: Sequence[ScenarioRecord], today: str) -> str:
    sections = [INTRODUCTION, f"Measured on {today}.\n\n{machine_lines(describe_machine(), git_commit())}"]
    for part in dict.fromkeys(record.part for record in records):
        rows = [_row(record) for record in records if record.part == part]
        header = ("scenario", "sent", "failed", "retried", "lost", "wrong tokens", "took", "which counts")
        sections.append(f"## {part}\n\n{table(header, rows)}{_notes(records, part)}")
    sections.append(LIMITS)
    return "\n".join(sections)


def broken_promises(records: Sequence[ScenarioRecord]) -> list[str]:
    """A line for each promise that a record does not keep."""
    lines = []
    for record in records:
        if record.lost or record.wrong:
            lines.append(f"{record.scenario}: {record.lost} requests lost, {record.wrong} tokens wrong")
        if record.bar is not None and (record.took or 0.0) > record.bar:
            lines.append(
                f"{record.scenario}: {record.took:.3g} {record.unit}, at most {record.bar:.3g} promised"
            )
    return lines


def _row(record: ScenarioRecord) -> tuple[str, ...]:
    retried = ", ".join(f"{count} ({cause})" for cause, count in record.retried.items())
    took = "" if record.took is None else f"{record.took:.3g} {record.unit}"
    bar = "" if record.bar is None else f" (at most {record.bar:.3g})"
    wrong = f"{record.wrong} of {record.compared:,}"
    return (
        record.scenario,
        str(record.sent),
        str(record.failed),
        retried or "0",
        str(record.lost),
        wrong,
        took + bar,
        record.what,
    )


def _notes(records: Sequence[ScenarioRecord], part: str) -> str:
    lines = [
        f"- {record.scenario}: {note}" for record in records if record.part == part for note in record.notes
    ]
    return "\n".join(["", *lines, ""]) if lines else ""


def main(records_file: str, page: str) -> int:
    records = read_records(Path(records_file))
    Path(page).write_text(render(records, datetime.now(UTC).date().isoformat()))
    broken = broken_promises(records)
    for line in broken:
        print(line, file=sys.stderr)
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
