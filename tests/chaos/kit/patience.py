"""Waiting for what must come true, however busy the machine is."""

from __future__ import annotations

import time
from collections.abc import Callable

PATIENCE_S = 240.0  # far above what anything here takes


def wait_for(condition: Callable[[], bool], *, every_s: float = 0.1) -> None:
    """Looks again and again; AssertionError after PATIENCE_S."""
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        if time.monotonic() > deadline:
            raise AssertionError(f"the condition did not come true in {PATIENCE_S:g} s")
        time.sleep(every_s)
