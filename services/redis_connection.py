"""Connections to Redis or Valkey, and their errors as one clear line."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from redis import Redis
from redis.backoff import ExponentialBackoff
from redis.exceptions import (
    AuthenticationError,
    AuthorizationError,
    NoPermissionError,
    OutOfMemoryError,
    ReadOnlyError,
    RedisError,
)
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError
from redis.retry import Retry
from redis.sentinel import MasterNotFoundError

from evospec.errors import RegistryError
from services import sentinel
from services.urls import redact

CONNECT_TIMEOUT_S = 3.0
HEALTH_CHECK_S = 15
# What a command in a script may not do has no error code of its own (Valkey and Redis 7.2, Redis 7.0).
DENIED_IN_SCRIPT = ("ACL failure in script", "The user executing the script can't")


def connect(url: str, *, socket_timeout_s: float, setting: str = "registry.url") -> Redis:
    """A client for `url`; no packet is sent before its first command.

    A command whose connection turns out dead is sent once more on a new one, so
    every command given to this client must bear being run twice.

    Args:
        url: `redis://`, `rediss://` (TLS), `unix://`, `redis+sentinel://` or `rediss+sentinel://`;
            its query may hold redis-py's options for a connection, such as `ssl_ca_certs`.
        setting: option that the URL comes from, for messages.

    Raises:
        RegistryError: the URL cannot be read, or asks for decoded replies.
    """
    options = {
        "socket_timeout": socket_timeout_s,
        "socket_connect_timeout": CONNECT_TIMEOUT_S,
        "health_check_interval": HEALTH_CHECK_S,
        "retry": Retry(ExponentialBackoff(cap=0.5, base=0.05), retries=1),
    }
    through_sentinels = sentinel.is_sentinel(url)
    try:
        client = sentinel.primary_of(url, **options) if through_sentinels else Redis.from_url(url, **options)
        pool = client.connection_pool
        pool.connection_class(**pool.connection_kwargs)  # shows options that don't exist; opens nothing
    except (ValueError, TypeError, RedisError) as error:
        # The reason is not shown: it may quote a part of the password.
        form = sentinel.FORM if through_sentinels else "redis://host:port/0 or rediss://…"
        raise RegistryError(
            f"{setting} is not a Redis URL ({redact(url)}), or an option in its query does not exist: "
            f"write {form}"
        ) from error
    if client.get_encoder().decode_responses:
        raise RegistryError(f"remove decode_responses from {setting} ({redact(url)}): blobs are not text")
    return client


@contextmanager
def redis_errors(address: str, action: str, setting: str = "registry.url") -> Iterator[None]:
    """Turns every redis-py error in the block into a RegistryError.

    Args:
        address: where the server is, without secrets.
        action: what was tried, to follow "cannot".
        setting: option that the address comes from.
    """
    try:
        yield
    except RedisError as error:
        raise RegistryError(f"cannot {action}: {_explain(address, error, setting)}") from error


def _explain(address: str, error: RedisError, setting: str) -> str:
    detail = next(iter(str(error).splitlines()), type(error).__name__)
    if isinstance(error, MasterNotFoundError):
        return (
            f"no sentinel of {address} names a running primary; check that they run and watch this service, "
            f"and {setting}"
        )
    if isinstance(error, AuthenticationError | AuthorizationError):
        return f"{address} refused the credentials ({detail}); check user and password in {setting}"
    if isinstance(error, NoPermissionError) or any(part in detail for part in DENIED_IN_SCRIPT):
        return f"{address} denied the command ({detail}); extend the ACL of the user in {setting}"
    if isinstance(error, OutOfMemoryError):
        return f"{address} is out of memory; raise its maxmemory or lower registry.keep_versions"
    if isinstance(error, ReadOnlyError):
        return f"{address} is a read-only copy; {setting} must name the primary"
    if isinstance(error, RedisTimeoutError):
        return f"{address} did not answer in time ({detail}); check the server's load and the network"
    if isinstance(error, RedisConnectionError):
        return f"{address} is not reachable ({detail}); check that the server runs and {setting}"
    return f"{address} answered {detail!r}; check that registry.namespace is used by nothing else"
