"""Snapshots of the token index, which the Qdrant server makes and keeps."""

from __future__ import annotations

from contextlib import closing

from qdrant_client import QdrantClient

from evospec.config import SemanticConfig
from evospec.errors import TokenIndexError
from services.qdrant_connection import address_of
from services.qdrant_errors import CLIENT_ERRORS, explain

TIMEOUT_S = 600  # the server answers when a snapshot is complete


def snapshot(config: SemanticConfig, keep: int) -> list[str]:
    """Makes a snapshot of each collection of the index, and deletes all but the latest.

    Args:
        keep: snapshots per collection that stay, the new one among them.

    Returns:
        `collection/snapshot` for each that was made.

    Raises:
        TokenIndexError: no server is configured, or it refuses. What was made by then stays.
    """
    if config.url is None:
        raise TokenIndexError("semantic.url is not set: only a Qdrant server makes snapshots")
    client = QdrantClient(
        url=config.url, api_key=config.api_key, timeout=TIMEOUT_S, check_compatibility=False
    )
    with closing(client):
        try:
            return _snapshot_all(client, config.collection, keep)
        except CLIENT_ERRORS as error:
            raise TokenIndexError(f"Qdrant at {address_of(config)} {explain(error)}") from error


def _snapshot_all(client: QdrantClient, prefix: str, keep: int) -> list[str]:
    made = []
    for collection in client.get_collections().collections:
        if not collection.name.startswith(prefix):
            continue
        description = client.create_snapshot(collection.name, wait=True)
        if description is None:
            raise TokenIndexError(f"Qdrant made no snapshot of {collection.name}: see the server's log")
        made.append(f"{collection.name}/{description.name}")
        _delete_old(client, collection.name, keep)
    return made


def _delete_old(client: QdrantClient, collection: str, keep: int) -> None:
    """Their names hold when they were made, which older servers do not tell otherwise."""
    found = sorted(client.list_snapshots(collection), key=lambda one: (one.creation_time or "", one.name))
    for old in found[:-keep]:
        client.delete_snapshot(collection, old.name, wait=True)
