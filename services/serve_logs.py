"""How Ray Serve's processes log."""

from __future__ import annotations

from typing import Literal

from ray.serve.schema import LoggingConfig

LogFormat = Literal["text", "json"]


def quiet_logs(form: LogFormat) -> LoggingConfig:
    """Warnings only as text; JSON is for programs, which take more. Replicas are asked every second how they
    are, so single calls are not logged."""
    if form == "json":
        return LoggingConfig(encoding="JSON", log_level="INFO", enable_access_log=False)
    return LoggingConfig(log_level="WARNING", enable_access_log=False)


def gateway_logs(form: LogFormat) -> LoggingConfig:
    """The gateway's, which also logs each request where logs are JSON."""
    if form == "json":
        return LoggingConfig(encoding="JSON", log_level="INFO", enable_access_log=True)
    return quiet_logs(form)
