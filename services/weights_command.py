"""What `evospec weights` does: reads the registry, and has it carry out an operator's decisions."""

from __future__ import annotations

import getpass
import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evospec.config import RegistryConfig
from evospec.errors import EvoSpecError, RegistryError, WireError
from evospec.wire import Decision, Manifest, Rollout, RolloutEvent, VersionState
from services.registry import RedisWeightRegistry, open_registry
from services.rollout_preview import Holdings, Outcome, preview
from services.settings import load_config
from services.urls import redact

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Overview:
    """State of a registry; `replicas` maps each replica to the version it acknowledged."""

    rollout: Rollout
    manifests: tuple[Manifest, ...]
    replicas: dict[str, int]

    def as_dict(self) -> dict[str, Any]:
        return {
            "stable": self.rollout.stable,
            "candidate": self.rollout.candidate,
            "canary": sorted(self.rollout.canary),
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


def login_name() -> str:
    """Raises EvoSpecError where the system knows none, as in some containers."""
    try:
        return getpass.getuser()
    except (OSError, KeyError, ImportError):
        raise EvoSpecError("who decides can't be told from the login: give --by NAME") from None


def read_overview(settings: RegistryConfig) -> Overview:
    with _opened(settings) as registry:
        return Overview(registry.rollout(), tuple(registry.manifests()), registry.acknowledgements())


def version_manifest(settings: RegistryConfig, version: int) -> Manifest:
    """Raises RegistryError when the registry has no such version (any more)."""
    with _opened(settings) as registry:
        manifests = {manifest.version: manifest for manifest in registry.manifests()}
    if version not in manifests:
        kept = ", ".join(map(str, sorted(manifests))) or "none"
        raise RegistryError(f"the registry has no version {version}; it keeps {kept}")
    return manifests[version]


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
        if dry_run:
            before = Holdings(registry.rollout(), _states(registry))
            address = redact(str(settings.url))
            after = preview(decision, before, lambda version: _is_there(registry, version), address)
        else:
            before = _readable_holdings(registry)
            registry.decide(decision)
            after = _readable_holdings(registry)
        return Outcome(decision, before, after, registry.acknowledgements(), dry_run)


def _states(registry: RedisWeightRegistry) -> dict[int, VersionState]:
    return {manifest.version: manifest.state for manifest in registry.manifests()}


def _readable_holdings(registry: RedisWeightRegistry) -> Holdings:
    """For the report only: no damaged manifest keeps an operator from rolling back."""
    try:
        states = _states(registry)
    except WireError as error:
        logger.warning("not all states can be told: %s", error)
        states = {}
    return Holdings(registry.rollout(), states)


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
