"""Addresses of servers as they may appear in messages and logs."""

from __future__ import annotations

from urllib.parse import urlsplit


def redact(url: str) -> str:
    """`url` without user, password and query; a URL that can't be read shows its scheme only.

    Several hosts may be named, with commas between them.

    >>> redact("redis://user:secret@host:6379/0?timeout=1")
    'redis://host:6379/0'
    """
    scheme, separator, _ = url.partition("://")
    if not separator:
        return "(a URL without a scheme)"
    try:
        parts = urlsplit(url)
        hosts = [host_and_port(part) for part in parts.netloc.rpartition("@")[2].split(",")]
    except ValueError:
        return f"{scheme}://…"
    if "@" in parts.path:  # a password with a slash in it ended the host early
        return f"{scheme}://…"
    shown = ",".join(_shown(*each) for each in hosts)
    if not shown and scheme != "unix":
        return f"{scheme}://…"
    return f"{scheme}://{shown}{parts.path}"


def host_and_port(text: str) -> tuple[str, int | None]:
    """Host and port of `host:port`, `[::1]:port` or `host`.

    Raises:
        ValueError: the port is no number.
    """
    parts = urlsplit(f"//{text}")
    return parts.hostname or "", parts.port


def _shown(host: str, port: int | None) -> str:
    name = f"[{host}]" if ":" in host else host
    return name if port is None else f"{name}:{port}"
