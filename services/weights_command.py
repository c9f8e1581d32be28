"""What `evospec weights` does: reads the registry, and has it carry out an operator's decisions."""

from __future__ import annotations

import getpass
import json
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evospec.config import RegistryConfig
from evospec.errors import EvoSpecError, RegistryError, WireError
from evospec.wire import Decision, Manifest, Rollout, RolloutEvent
from services.registry import RedisWeightRegistry, open_registry
from services.registry_contents import KeptVersions
from services.rollout_preview import Holdings, Outcome, preview
from services.settings import load_config
from services.urls import redact


@dataclass(frozen=True, slots=True)
class Overview:
    """State of a registry; `replicas` maps each replica to the version it acknowledged."""

    rollout: Rollout
    kept: KeptVersions
    replicas: dict[str, int]

    def as_dict(self) -> dict[str, Any]:
        return {
            "stable": self.rollout.stable,
            "candidate": self.rollout.candidate,
            "canary": sorted(self.rollout.canary),
            "versions": [json.loads(manifest.to_json()) for manifest in self.kept.manifests.values()],
            "damaged": self.kept.damaged,
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


def login_name() -> str:
    """Raises EvoSpecError where the system knows none, as in some containers."""
    try:
        return getpass.getuser()
    except (OSError, KeyError, ImportError):
        raise EvoSpecError("who decides can't be told from the login: give --by NAME") from None


def read_overview(settings: RegistryConfig) -> Overview:
    with _opened(settings) as registry:
        return Overview(registry.rollout(), registry.kept_versions(), registry.acknowledgements())


def version_manifest(settings: RegistryConfig, version: int) -> Manifest:
    """The manifest of one version.

    Raises:
        RegistryError: the registry has no such version (any more).
        WireError: its manifest is damaged.
    """
    with _opened(settings) as registry:
        found = registry.kept_versions()
    if version in found.damaged:
        raise WireError(found.damaged[version])
    if version not in found.manifests:
        kept = ", ".join(map(str, sorted(found.manifests | found.damaged))) or "none"
        raise RegistryError(f"the registry has no version {version}; it keeps {kept}")
    return found.manifests[version]


def read_log(settings: RegistryConfig, limit: int) -> list[RolloutEvent]:
    """The latest entries of the audit trail, oldest first."""
    with _opened(settings) as registry:
        return registry.events(limit)


def decide(settings: RegistryConfig, decision: Decision, *, dry_run: bool) -> Outcome:
    """Has the registry carry out a decision or, in a dry run, says what would come of it.

    Raises:
        RegistryError: the server is away.
        DecisionRefusedError: it does not fit what the registry holds.
        WireError: the version to go to is damaged.
    """
    with _opened(settings) as registry:
        _check_intact(registry, decision)
        before = _holdings(registry)
        if dry_run:
            address = redact(str(settings.url))
            after = preview(decision, before, lambda version: _is_there(registry, version), address)
        else:
            registry.decide(decision)
            after = _holdings(registry)
        return Outcome(decision, before, after, registry.acknowledgements(), dry_run)


def _holdings(registry: RedisWeightRegistry) -> Holdings:
    return Holdings(registry.rollout(), registry.kept_versions().states)


def _check_intact(registry: RedisWeightRegistry, decision: Decision) -> None:
    """Raises WireError when all replicas would be sent to a version that none of them can load."""
    if decision.kind in ("promote", "rollback") and decision.version:
        with suppress(RegistryError):  # of what is missing, or of a server that is away, `decide` speaks
            registry.fetch(decision.version)


def _is_there(registry: RedisWeightRegistry, version: int) -> bool:
    """Whether the registry has the version's bytes, be they damaged."""
    try:
        registry.fetch(version)
    except RegistryError:
        return False
    except WireError:
        return True
    return True


@contextmanager
def _opened(settings: RegistryConfig) -> Iterator[RedisWeightRegistry]:
    registry = open_registry(settings)
    try:
        yield registry
    finally:
        registry.close()
