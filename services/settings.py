"""The configuration: one YAML file, environment variables above it, command-line options above both."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict, SettingsError

from evospec.config import Config
from evospec.errors import EvoSpecError

ENV_PREFIX = "EVOSPEC_"
ENV_DELIMITER = "__"


class ConfigError(EvoSpecError):
    """A configuration that can't be used: says which key, and where it was set."""


class _Settings(BaseSettings, Config):
    """`Config` as pydantic-settings fills it: EVOSPEC_ENGINE__DRAFT_LENGTH=3 is engine.draft_length."""

    model_config = SettingsConfigDict(
        env_prefix=ENV_PREFIX,
        env_nested_delimiter=ENV_DELIMITER,
        env_parse_none_str="null",
        extra="forbid",
        frozen=True,
    )

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        return (env_settings, init_settings)  # the first one wins


def load_config(file: Path | None = None, options: Mapping[str, Any] | None = None) -> Config:
    """Reads the configuration.

    Args:
        file: YAML; sections and keys as in `evospec.config.Config`. None uses the defaults.
        options: values by dotted key ("serve.port"), which go above file and environment.

    Raises:
        ConfigError: the file can't be read, a key is unknown, or a value is out of bounds.
    """
    content = _read(file) if file is not None else {}
    return _with_options(_settings(content, str(file)), options or {})


def config_from(content: Mapping[str, Any], place: str) -> Config:
    """The configuration that a file with such content gives, in this process's environment.

    Args:
        place: where the content is from, for messages.

    Raises:
        ConfigError: a key is unknown, or a value is out of bounds.
    """
    return _with_options(_settings(content, place), {})


def _settings(content: Mapping[str, Any], place: str) -> Config:
    _check_environment()
    try:
        return _Settings(**content)
    except ValidationError as error:
        raise ConfigError(_explain(error, place)) from None
    except SettingsError as error:
        raise ConfigError(f"an environment variable can't be read: {error}") from None


def _with_options(settings: Config, options: Mapping[str, Any]) -> Config:
    values = settings.model_dump(exclude_unset=True)  # of `models`, what is set goes above the rest
    for key, value in options.items():
        section, _, name = key.partition(".")
        values.setdefault(section, {})[name] = value
    try:
        return Config.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        raise ConfigError(f"{'.'.join(map(str, first['loc']))} on the command line: {first['msg']}") from None


def _read(file: Path) -> dict[str, Any]:
    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"the configuration file {file} can't be read: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"the configuration file {file} is not valid YAML: {_one_line(error)}") from None
    if content is None:
        return {}
    if not isinstance(content, dict) or not all(isinstance(key, str) for key in content):
        raise ConfigError(f"the configuration file {file} must hold sections (model:, engine:, …)")
    return content


def _check_environment() -> None:
    """pydantic-settings passes over variables of unknown sections: a typo would go unnoticed."""
    for variable in sorted(os.environ):
        section, delimiter, _ = variable.upper().removeprefix(ENV_PREFIX).partition(ENV_DELIMITER)
        if (
            variable.upper().startswith(ENV_PREFIX)
            and delimiter
            and section.lower() not in Config.model_fields
        ):
            raise ConfigError(
                f"environment variable {variable}: there is no section {section.lower()!r} "
                f"({', '.join(Config.model_fields)})"
            )


def _explain(error: ValidationError, place: str) -> str:
    first = error.errors()[0]
    path = [str(part) for part in first["loc"]]
    variable = ENV_PREFIX + ENV_DELIMITER.join(path).upper()
    from_environment = variable in {name.upper() for name in os.environ}
    where = f"environment variable {variable}" if from_environment else place
    key = ".".join(path)
    if first["type"] == "extra_forbidden":
        return f"{where}: unknown key {key}"
    message = first["msg"].removeprefix("Value error, ")
    secret = path[-1].endswith("_key") or path[0] == "access"  # a key may stand where its digest should
    return f"{where}: {key}: {message}" + ("" if secret else f" (got {first['input']!r:.80})")


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
