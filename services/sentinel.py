"""Servers found through Redis Sentinel: the client asks the sentinels who the primary is, at each connect."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote

from redis import Redis
from redis.backoff import NoBackoff
from redis.connection import parse_url
from redis.retry import Retry
from redis.sentinel import Sentinel, SentinelConnectionPool

from services.urls import HostsUrl, host_and_port

SCHEMES = ("redis+sentinel", "rediss+sentinel")
DEFAULT_PORT = 26379
SENTINEL_TIMEOUT_S = 3.0
FORM = "redis+sentinel://user:password@host:26379,host2:26379/service/0"


@dataclass(frozen=True, slots=True)
class SentinelUrl:
    """`redis+sentinel://[user:password@]host:26379,host2:26379/service[/db]`, read.

    User and password are those of the data servers; `sentinel_username` and
    `sentinel_password` in the query are those of the sentinels. `rediss+sentinel` asks
    both for TLS. `options` are redis-py's keyword arguments for a connection.
    """

    hosts: tuple[tuple[str, int], ...]
    service: str
    tls: bool
    options: dict[str, Any]

    @classmethod
    def parse(cls, url: str) -> SentinelUrl:
        """Raises ValueError, with the reason, for anything of another form."""
        parts = HostsUrl.split(url)
        hosts = tuple(_address(part) for part in parts.hosts)
        service, _, database = parts.path.removeprefix("/").partition("/")
        if not service:
            raise ValueError("it names no service")
        if database and not database.isdecimal():
            raise ValueError(f"database {database!r} is no number")
        # redis-py reads the rest, as of any other URL of its own.
        login = f"{parts.login}@" if parts.login else ""
        rest = parse_url(f"redis://{login}host/{database or 0}?{parts.query}")
        options = {name: value for name, value in rest.items() if name not in ("host", "port")}
        return cls(hosts, unquote(service), parts.scheme == "rediss+sentinel", options)


class _Pool(SentinelConnectionPool):
    """Closes the connections to the sentinels with its own."""

    def disconnect(self, inuse_connections: bool = True) -> None:
        super().disconnect(inuse_connections)
        if inuse_connections:  # the pool itself asks for the idle ones only, when the primary moved
            self.sentinel_manager.close()


def is_sentinel(url: str) -> bool:
    return url.partition("://")[0] in SCHEMES


def primary_of(url: str, **defaults: Any) -> Redis:
    """A client of the primary that the sentinels name; no packet is sent before its first command.

    Args:
        defaults: keyword arguments of its connections; the URL's query overrides them.

    Raises:
        ValueError: the URL is of another form.
    """
    read = SentinelUrl.parse(url)
    options = {**defaults, **read.options, **({"ssl": True} if read.tls else {})}
    sentinel_options = {name: value for name, value in options.items() if name.startswith("ssl")}
    for name in ("username", "password"):
        if (value := options.pop(f"sentinel_{name}", None)) is not None:
            sentinel_options[name] = value
    sentinels = Sentinel(
        read.hosts,
        sentinel_kwargs={
            **sentinel_options,
            "socket_timeout": SENTINEL_TIMEOUT_S,
            "socket_connect_timeout": SENTINEL_TIMEOUT_S,
            "retry": Retry(NoBackoff(), 0),  # the next sentinel is asked instead
        },
    )
    client: Redis = sentinels.master_for(read.service, connection_pool_class=_Pool, **options)
    return client


def _address(text: str) -> tuple[str, int]:
    host, port = host_and_port(text)
    if not host:
        raise ValueError("it names no host")
    return host, DEFAULT_PORT if port is None else port
