"""`evospec weights`: what the registry holds, for people and for programs."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from evospec.config import RegistryConfig
from evospec.errors import RegistryError
from evospec.wire import Manifest
from services.registry import RedisWeightRegistry, open_registry
from services.settings import load_config


@dataclass(frozen=True, slots=True)
class Overview:
    """State of a registry; `replicas` maps each replica to the version it acknowledged."""

    current: int
    manifests: tuple[Manifest, ...]
    replicas: dict[str, int]

    def as_dict(self) -> dict[str, Any]:
        return {
            "current": self.current,
            "versions": [json.loads(manifest.to_json()) for manifest in self.manifests],
            "replicas": self.replicas,
        }


def registry_settings(file: Path | None, url: str | None) -> RegistryConfig:
    """Where the registry is, by configuration or by URL.

    Raises:
        RegistryError: neither names one.
    """
    settings = load_config(file, {} if url is None else {"registry.url": url}).registry
    if settings.url is None:
        raise RegistryError(
            "no weight registry is named: give --registry URL or set registry.url "
            "(the one that `evospec serve` embeds can't be reached from outside)"
        )
    return settings


def read_overview(settings: RegistryConfig) -> Overview:
    with _opened(settings) as registry:
        return Overview(registry.current_version(), tuple(registry.manifests()), registry.acknowledgements())


def version_manifest(settings: RegistryConfig, version: int) -> Manifest:
    """Raises RegistryError when the registry has no such version (any more)."""
    with _opened(settings) as registry:
        manifests = {manifest.version: manifest for manifest in registry.manifests()}
    if version not in manifests:
        kept = ", ".join(map(str, sorted(manifests))) or "none"
        raise RegistryError(f"the registry has no version {version}; it keeps {kept}")
    return manifests[version]


def show_overview(overview: Overview) -> None:
    table = Table("version", "state", "acceptance length", "parent", "epoch", "size", "published", "replicas")
    for manifest in reversed(overview.manifests):
        current = manifest.version == overview.current
        table.add_row(
            f"{manifest.version}{' *' if current else ''}",
            manifest.state,
            _gate(manifest),
            str(manifest.parent),
            str(manifest.epoch),
            f"{manifest.length / 2**20:.1f} MiB",
            _date(manifest),
            ", ".join(name for name, version in overview.replicas.items() if version == manifest.version),
        )
    console = Console()
    console.print(table)
    console.print("* current" if overview.current else "nothing was published: replicas run the base drafter")


def show_version(manifest: Manifest) -> None:
    table = Table("", "", show_header=False)
    table.add_row("version", f"{manifest.version} (parent {manifest.parent}, epoch {manifest.epoch})")
    table.add_row("state", manifest.state)
    table.add_row("published", _date(manifest))
    table.add_row("target", manifest.fingerprints.target)
    table.add_row("drafter", manifest.fingerprints.drafter)
    table.add_row("tokenizer", manifest.fingerprints.tokenizer)
    table.add_row("sha256", manifest.sha256)
    table.add_row("signed", "yes" if manifest.signature else "no")
    table.add_row("length", f"{manifest.length} bytes")
    for name, value in sorted(manifest.metrics.items()):
        table.add_row(name, f"{value:g}")
    for spec in manifest.tensors:
        table.add_row(spec.name, f"{spec.dtype} {list(spec.shape)}")
    Console().print(table)


def _gate(manifest: Manifest) -> str:
    metrics = manifest.metrics
    if "acceptance_length" not in metrics or "parent_acceptance_length" not in metrics:
        return ""
    return f"{metrics['parent_acceptance_length']:.3f} → {metrics['acceptance_length']:.3f}"


def _date(manifest: Manifest) -> str:
    return datetime.fromtimestamp(manifest.created, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


@contextmanager
def _opened(settings: RegistryConfig) -> Iterator[RedisWeightRegistry]:
    registry = open_registry(settings)
    try:
        yield registry
    finally:
        registry.close()
