"""Ctrl-C and SIGTERM, for commands that must stop all that they started."""

from __future__ import annotations

import signal
from types import FrameType


def interrupt_once() -> None:
    """The first SIGINT or SIGTERM is a KeyboardInterrupt; later ones must not disturb the clean-up."""
    signal.signal(signal.SIGINT, _interrupt)
    signal.signal(signal.SIGTERM, _interrupt)


def _interrupt(number: int, frame: FrameType | None) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    raise KeyboardInterrupt
