"""Finds every process that comes of one that a test started, however it detached itself."""

from __future__ import annotations

import os
import signal
from pathlib import Path

_NAME, _VALUE = "EVOSPEC_TEST_MARK", f"mark-{os.getpid()}"


def marked_environment(part: str = "") -> dict[str, str]:
    """The environment for a process that `descendants` shall find; `part` tells some from others."""
    return {**os.environ, _NAME: _VALUE + part}


def descendants(part: str = "") -> list[str]:
    """Command lines of the processes that carry the mark."""
    return list(_marked(part).values())


def kill_descendants(part: str) -> int:
    """SIGKILL for all of them at once, as when a machine goes; returns how many there were."""
    found = _marked(part)
    for process in found:
        try:
            os.kill(process, signal.SIGKILL)
        except ProcessLookupError:
            continue
    return len(found)


def _marked(part: str) -> dict[int, str]:
    """Command lines by process id."""
    mark = f"{_NAME}={_VALUE}{part}".encode()
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if mark in (folder / "environ").read_bytes().split(b"\0"):
                command = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode()
                found[int(folder.name)] = command
        except (FileNotFoundError, PermissionError, ProcessLookupError):
            continue  # it ended, or is not ours
    return found
