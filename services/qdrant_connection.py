"""Opening a Qdrant: a server, over REST or gRPC, or one embedded in this process."""

from __future__ import annotations

import ssl
import stat
from pathlib import Path

from qdrant_client import QdrantClient

from evospec.config import SemanticConfig
from evospec.errors import TokenIndexError
from services.urls import redact

REQUEST_TIMEOUT_S = 5  # the client knows whole seconds only; over REST it counts each phase apart


def connect(config: SemanticConfig) -> QdrantClient:
    """A client of the Qdrant that `config` names; a server is first met by the first call.

    Raises:
        TokenIndexError: `semantic.ca_file` can't be read; the folder can be written by everyone.
        Exception: whatever the client raises on a URL that can't be read or a folder in use;
            `services.qdrant_errors.CLIENT_ERRORS` lists it.
    """
    if config.url is not None:
        return _connect_to_server(config.url, config)
    if config.path is not None:
        _check_private(Path(config.path))
        return QdrantClient(path=config.path, force_disable_check_same_thread=True)
    return QdrantClient(":memory:")


def address_of(config: SemanticConfig) -> str:
    """What messages call it."""
    if config.url is None:
        return config.path or "the embedded index"
    grpc = "" if config.grpc_port is None else f" (gRPC port {config.grpc_port})"
    return redact(config.url) + grpc


def _connect_to_server(url: str, config: SemanticConfig) -> QdrantClient:
    file = config.ca_file
    return QdrantClient(
        url=url,
        api_key=config.api_key,
        timeout=REQUEST_TIMEOUT_S,
        check_compatibility=False,
        prefer_grpc=config.grpc_port is not None,
        grpc_port=config.grpc_port or 0,
        verify=True if file is None else _trusting(file),
        grpc_options=None if file is None else {"root_certificates": Path(file).read_bytes()},
    )


def _trusting(ca_file: str) -> ssl.SSLContext:
    try:
        return ssl.create_default_context(cafile=ca_file)
    except OSError as error:  # ssl.SSLError is one
        raise TokenIndexError(
            f"can't read certificates from semantic.ca_file {ca_file}: "
            f"{error.strerror or type(error).__name__}; name a PEM file"
        ) from error


def _check_private(folder: Path) -> None:
    """The embedded index unpickles what its folder holds, so nobody else may write there."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    if folder.stat().st_mode & stat.S_IWOTH:
        raise TokenIndexError(
            f"everyone may write to semantic.path {folder}, whose content is trusted: chmod o-w {folder}"
        )
