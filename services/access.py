"""Who may ask: API keys, kept as SHA-256 digests, and the tenants that they belong to.

Keys are 256 random bits, so that a plain digest of one can't be turned back; a key that a person made up
could be guessed from it.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

from starlette.datastructures import Headers
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from evospec.config.access import AccessConfig, AdminKey, ApiKey
from services import api_errors
from services.api_errors import ApiError

Key = TypeVar("Key", bound=AdminKey)

OPEN_PATHS = frozenset({"/health", "/dashboard", "/dashboard/"})
OPEN_PREFIX = "/dashboard/assets/"  # the page holds nothing; what it fetches needs a key
ADMIN_PREFIX = "/admin/"
WATCHING = "/dashboard/events"  # shows what requests of all tenants are about
TRYING = "/dashboard/generate"


@dataclass(frozen=True, slots=True)
class Caller:
    """Whose key a request bears; both empty where none is needed."""

    name: str = ""
    tenant: str = ""


def new_key() -> str:
    """A key that nobody has."""
    return f"evo-{secrets.token_urlsafe(32)}"


def digest_of(key: str) -> str:
    """What the configuration holds of a key."""
    return hashlib.sha256(key.encode()).hexdigest()


def caller_of(access: AccessConfig, path: str, authorization: str) -> Caller:
    """Who asks for a path. Without any API key in the configuration everybody may, but for administration;
    without any key at all, everybody may watch the dashboard.

    Raises:
        ApiError: 401: the key is missing, unknown, or not for this path.
    """
    if path in OPEN_PATHS or path.startswith(OPEN_PREFIX):
        return Caller()
    presented = _bearer(authorization)
    watches = path == WATCHING and bool(access.keys or access.admin_keys)
    if watches or path.startswith(ADMIN_PREFIX):
        return Caller(_known(access.admin_keys, presented).name)
    if not access.keys:
        return Caller()
    # The dashboard has one key for all that it does.
    key = _known((*access.keys, *access.admin_keys) if path == TRYING else access.keys, presented)
    return Caller(key.name, key.tenant if isinstance(key, ApiKey) else "")


def _bearer(authorization: str) -> str:
    scheme, _, key = authorization.partition(" ")
    return key.strip() if scheme.lower() == "bearer" else ""


def _known(keys: Sequence[Key], presented: str) -> Key:
    """The one that was presented, found in the same time whichever it is, and whether or not it is there."""
    if not presented:
        raise api_errors.unauthorized("No API key was given: send 'Authorization: Bearer KEY'.")
    digest = digest_of(presented)
    found = [key for key in keys if hmac.compare_digest(key.sha256, digest)]
    if not found:
        raise api_errors.unauthorized("The API key is not valid here.")
    return found[0]


class Authentication:
    """ASGI middleware: what passes has a `Caller` in its state."""

    def __init__(self, app: ASGIApp, access: AccessConfig) -> None:
        self._app = app
        self._access = access

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            try:
                caller = caller_of(self._access, scope["path"], Headers(scope=scope).get("authorization", ""))
            except ApiError as error:
                await JSONResponse(error.body(), error.status, dict(error.headers))(scope, receive, send)
                return
            scope.setdefault("state", {})["caller"] = caller
        await self._app(scope, receive, send)
