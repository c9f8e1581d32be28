"""Addresses of servers as they may appear in messages and logs."""

from __future__ import annotations

import re
from dataclasses import dataclass
from urllib.parse import urlsplit

_URL = re.compile(r"(?P<scheme>[^:/?#]+)://(?P<host>[^/?#]*)(?P<path>[^?#]*)(?:\?(?P<query>[^#]*))?")


@dataclass(frozen=True, slots=True)
class HostsUrl:
    """A URL that may name several hosts, with commas between them; some of Python's versions refuse those.

    Attributes:
        login: `user:password`, as it is written; empty when there is none.
    """

    scheme: str
    login: str
    hosts: tuple[str, ...]
    path: str
    query: str

    @classmethod
    def split(cls, url: str) -> HostsUrl:
        """Raises ValueError for what is no URL."""
        found = _URL.match(url)
        if found is None:
            raise ValueError("it is no URL")
        login, _, hosts = found["host"].rpartition("@")
        return cls(
            found["scheme"].lower(), login, tuple(hosts.split(",")), found["path"], found["query"] or ""
        )


def redact(url: str) -> str:
    """`url` without user, password and query; a URL that can't be read shows its scheme only.

    >>> redact("redis://user:secret@host:6379/0?timeout=1")
    'redis://host:6379/0'
    """
    scheme, separator, _ = url.partition("://")
    if not separator:
        return "(a URL without a scheme)"
    try:
        parts = HostsUrl.split(url)
        hosts = [host_and_port(part) for part in parts.hosts]
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
