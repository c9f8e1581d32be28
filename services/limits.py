"""What may change while a server runs: limits of time, load and replicas."""

from __future__ import annotations

from typing import Any

from evospec.config import Config
from evospec.errors import EvoSpecError

# Keys of `serve` that Ray Serve applies to running deployments.
LIMITS = frozenset(
    {
        "replicas",
        "max_replicas",
        "target_ongoing_requests",
        "upscale_delay_s",
        "downscale_delay_s",
        "drain_s",
        "max_queued_requests",
        "request_timeout_s",
        "chunk_ms",
    }
)


class NeedsRestartError(EvoSpecError):
    """A setting was changed that only takes effect when the server starts."""


def with_limits(running: Config, before: Config, after: Config) -> Config:
    """The running configuration with the limits of another one.

    Args:
        before: as it was read at first: `running` has more filled in.

    Raises:
        NeedsRestartError: `after` differs from `before` in anything but limits.
    """
    fixed = sorted(set(_changed(before, after)) - {f"serve.{key}" for key in LIMITS})
    if fixed:
        raise NeedsRestartError(f"{', '.join(fixed)} can't change while the server runs: restart it")
    limits = after.serve.model_dump(include=set(LIMITS))
    return running.model_copy(update={"serve": running.serve.model_copy(update=limits)})


def without_limits(values: dict[str, Any]) -> dict[str, Any]:
    """A configuration's values, as a file holds them, without limits; sections left empty go as well."""
    kept = {section: content for section, content in values.items() if section not in ("serve", "models")}
    serving = {key: value for key, value in values.get("serve", {}).items() if key not in LIMITS}
    models = [
        {key: value for key, value in model.items() if key not in LIMITS}
        for model in values.get("models", [])
    ]
    return kept | {name: found for name, found in (("serve", serving), ("models", models)) if found}


def _changed(before: Config, after: Config) -> list[str]:
    """Keys that differ, dotted; `models` as a whole."""
    old, new = before.model_dump(exclude={"models"}), after.model_dump(exclude={"models"})
    changed = [f"{part}.{key}" for part in old for key in old[part] if old[part][key] != new[part][key]]
    return changed + ["models"] * (before.models != after.models)
