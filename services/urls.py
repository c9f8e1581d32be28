"""Addresses of servers as they may appear in messages and logs."""

from __future__ import annotations

from urllib.parse import urlsplit


def redact(url: str) -> str:
    """`url` without user, password and query; a URL that can't be read shows its scheme only.

    >>> redact("redis://user:secret@host:6379/0?timeout=1")
    'redis://host:6379/0'
    """
    scheme, separator, _ = url.partition("://")
    if not separator:
        return "(a URL without a scheme)"
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError:
        return f"{scheme}://…"
    if host is None:
        return f"{scheme}://{parts.path}" if scheme == "unix" else f"{scheme}://…"
    name = f"[{host}]" if ":" in host else host
    return f"{scheme}://{name}{'' if port is None else f':{port}'}{parts.path}"
