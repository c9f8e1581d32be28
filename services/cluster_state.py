"""What the parts of a cluster report of themselves, for administrators."""

from __future__ import annotations

import asyncio
from dataclasses import asdict
from typing import Any

from services.live.cluster_view import ClusterView


async def cluster_state(view: ClusterView) -> dict[str, Any]:
    """As `ClusterState` describes it."""
    seen = await asyncio.to_thread(view.look)
    return {
        "replicas": [asdict(status) for status in seen.replicas] or None,
        "aligner": None if seen.aligner is None else asdict(seen.aligner),
        "rollout": None if seen.rollout is None else asdict(seen.rollout),
    }
