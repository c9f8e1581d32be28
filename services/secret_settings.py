"""Settings that no file which is passed around should hold: addresses with passwords, and keys."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel

from evospec.config import Config
from evospec.errors import EvoSpecError
from services.settings import ENV_DELIMITER, ENV_PREFIX

KEYS_SECTION = "access"


class SecretInListError(EvoSpecError):
    """A secret stands where no environment variable of its own can carry it."""


def without_secrets(config: Config) -> dict[str, Any]:
    """What was set of a configuration, as a file holds it, without secrets.

    Raises:
        SecretInListError: an entry of `models` holds one.
    """
    for model in config.models:
        if model.semantic is not None and model.semantic.api_key is not None:
            raise SecretInListError(
                f"models: {model.name} has a semantic.api_key of its own: set semantic.api_key for all"
            )
    values: dict[str, Any] = config.model_dump(mode="json", exclude_unset=True, exclude={KEYS_SECTION})
    for section, key in _secrets(config):
        values.get(section, {}).pop(key, None)
    return {section: content for section, content in values.items() if content}


def secret_variables(config: Config) -> list[str]:
    """Environment variables that carry the secrets which are set, sorted."""
    found = [(section, key) for section, key in _secrets(config) if _value(config, section, key) is not None]
    found += [(KEYS_SECTION, key) for key in ("keys", "admin_keys") if _value(config, KEYS_SECTION, key)]
    return sorted(f"{ENV_PREFIX}{section}{ENV_DELIMITER}{key}".upper() for section, key in found)


def _secrets(config: Config) -> list[tuple[str, str]]:
    """Section and key of what is not shown when a configuration is printed."""
    sections = {name: value for name, value in config if isinstance(value, BaseModel)}
    return [
        (name, key)
        for name, section in sections.items()
        for key, field in type(section).model_fields.items()
        if not field.repr
    ]


def _value(config: Config, section: str, key: str) -> Any:
    return config.model_dump()[section][key]
