"""Tables of `evospec weights` for people."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime

from rich.console import Console
from rich.markup import escape
from rich.table import Column, Table

from evospec.wire import Manifest, Rollout, RolloutEvent
from services.weights_command import Overview

MAX_NAMES = 4  # of replicas in one cell, beside the canaries


def show_overview(overview: Overview) -> None:
    console, rollout = Console(), overview.rollout
    kept = overview.kept
    if not kept.manifests and not kept.damaged and not rollout.serial:
        console.print("nothing was published: replicas run the base drafter")
        return
    table = Table(
        Column("version", no_wrap=True),
        "state",
        "acceptance length",
        "parent",
        "epoch",
        "size",
        Column("published (UTC)", no_wrap=True),
        "replicas",
    )
    for version in sorted(kept.manifests | kept.damaged, reverse=True):
        cells = _cells(kept.manifests[version]) if version in kept.manifests else ("damaged", *[""] * 5)
        table.add_row(_marked(version, rollout), *cells, _replicas(version, overview))
    table.add_row(_marked(0, rollout), "base", *[""] * 5, _replicas(0, overview))
    console.print(table)
    console.print(_legend(rollout))
    for damage in kept.damaged.values():
        console.print(escape(f"damaged: {damage}; no replica takes it up: revoke it"))


def show_version(manifest: Manifest) -> None:
    table = Table("", "", show_header=False)
    table.add_row("version", f"{manifest.version} (parent {manifest.parent}, epoch {manifest.epoch})")
    table.add_row("state", manifest.state)
    table.add_row("published (UTC)", _date(manifest.created))
    table.add_row("target", manifest.fingerprints.target)
    table.add_row("drafter", manifest.fingerprints.drafter)
    table.add_row("tokenizer", manifest.fingerprints.tokenizer)
    table.add_row("sha256", manifest.sha256)
    table.add_row("signed", "yes" if manifest.signature else "no")
    table.add_row("length", f"{manifest.length} bytes")
    for name, value in sorted(manifest.metrics.items()):
        table.add_row(escape(name), f"{value:g}")
    for spec in manifest.tensors:
        table.add_row(escape(spec.name), escape(f"{spec.dtype} {list(spec.shape)}"))
    Console().print(table)


def show_log(events: Sequence[RolloutEvent]) -> None:
    table = Table(Column("time (UTC)", no_wrap=True), "event", "version", "by", "reason")
    for event in events:
        table.add_row(
            _date(event.time_s), event.event, str(event.version), escape(event.by), escape(event.reason)
        )
    Console().print(table)


def _cells(manifest: Manifest) -> tuple[str, ...]:
    """All of a version's row but its number and its replicas."""
    return (
        manifest.state,
        _gate(manifest),
        str(manifest.parent),
        str(manifest.epoch),
        f"{manifest.length / 2**20:.1f} MiB",
        _date(manifest.created),
    )


def _marked(version: int, rollout: Rollout) -> str:
    if version == rollout.stable:
        return f"{version} *"
    return f"{version} +" if version and version == rollout.candidate else str(version)


def _legend(rollout: Rollout) -> str:
    stable = "* stable: for all replicas" if not rollout.canary else "* stable: for all other replicas"
    if not rollout.candidate:
        return stable
    if not rollout.canary:
        return f"{stable}   + candidate: waits for its canary"
    return f"{stable}   + candidate: in its canary on {escape(', '.join(sorted(rollout.canary)))}"


def _replicas(version: int, overview: Overview) -> str:
    """Who acknowledged the version: canaries by name, of the others no more than fit."""
    names = sorted(name for name, acknowledged in overview.replicas.items() if acknowledged == version)
    canary = [f"{name} (canary)" for name in names if name in overview.rollout.canary]
    others = [name for name in names if name not in overview.rollout.canary]
    more = [f"{len(others) - MAX_NAMES} more"] if len(others) > MAX_NAMES else []
    return escape(", ".join([*canary, *others[:MAX_NAMES], *more]))


def _gate(manifest: Manifest) -> str:
    metrics = manifest.metrics
    if "acceptance_length" not in metrics or "parent_acceptance_length" not in metrics:
        return ""
    return f"{metrics['parent_acceptance_length']:.3f} → {metrics['acceptance_length']:.3f}"


def _date(seconds: float) -> str:
    try:
        return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M:%S")
    except (OverflowError, ValueError, OSError):
        return f"{seconds:g} s"  # beyond the calendar
