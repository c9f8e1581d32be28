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

from evospec.errors import RegistryError
from services.urls import redact

CONNECT_TIMEOUT_S = 3.0
HEALTH_CHECK_S = 15


def connect(url: str, *, socket_timeout_s: float) -> Redis:
    """A client for `url`; no packet is sent before its first command.

    A command whose connection turns out dead is sent once more on a new one, so
    every command given to this client must bear being run twice.

    Raises:
        RegistryError: the URL cannot be read, or asks for decoded replies.
    """
    try:
        client = Redis.from_url(
            url,
            socket_timeout=socket_timeout_s,
            socket_connect_timeout=CONNECT_TIMEOUT_S,
            health_check_interval=HEALTH_CHECK_S,
            retry=Retry(ExponentialBackoff(cap=0.5, base=0.05), retries=1),
        )
    except ValueError as error:
        raise RegistryError(
            f"registry.url is not a Redis URL ({redact(url)}): write redis://host:port/0 or rediss://…"
        ) from error
    if client.get_encoder().decode_responses:
        raise RegistryError(f"remove decode_responses from registry.url ({redact(url)}): blobs are not text")
    return client


@contextmanager
def redis_errors(address: str, action: str) -> Iterator[None]:
    """Turns every redis-py error in the block into a RegistryError.

    Args:
        address: where the server is, without secrets.
        action: what was tried, to follow "cannot".
    """
    try:
        yield
    except RedisError as error:
        raise RegistryError(f"cannot {action}: {_explain(address, error)}") from error


def _explain(address: str, error: RedisError) -> str:
    detail = next(iter(str(error).splitlines()), type(error).__name__)
    if isinstance(error, AuthenticationError | AuthorizationError):
        return f"{address} refused the credentials ({detail}); check user and password in registry.url"
    if isinstance(error, NoPermissionError):
        return f"{address} denied the command ({detail}); extend the ACL of the user in registry.url"
    if isinstance(error, OutOfMemoryError):
        return f"{address} is out of memory; raise its maxmemory or lower registry.keep_versions"
    if isinstance(error, ReadOnlyError):
        return f"{address} is a read-only copy; registry.url must name the primary"
    if isinstance(error, RedisTimeoutError):
        return f"{address} did not answer in time ({detail}); check the server's load and the network"
    if isinstance(error, RedisConnectionError):
        return f"{address} is not reachable ({detail}); check that the server runs and registry.url"
    return f"{address} answered {detail!r}; check that registry.namespace is used by nothing else"
