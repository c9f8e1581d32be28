"""Server-sent events with a name."""

from __future__ import annotations

import json
from typing import Any

HEADERS = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}  # for proxies that buffer


def event(kind: str, content: dict[str, Any]) -> str:
    """Raises ValueError for numbers that JSON does not have."""
    return f"event: {kind}\ndata: {json.dumps(content, allow_nan=False)}\n\n"
