"""Finds every process that comes of one that a test started, however it detached itself."""

from __future__ import annotations

import os
from pathlib import Path

_NAME, _VALUE = "EVOSPEC_TEST_MARK", f"mark-{os.getpid()}"


def marked_environment() -> dict[str, str]:
    """The environment for a process that `descendants` shall find."""
    return {**os.environ, _NAME: _VALUE}


def descendants() -> list[str]:
    """Command lines of the processes that carry the mark."""
    mark = f"{_NAME}={_VALUE}".encode()
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if mark in (folder / "environ").read_bytes():
                found.append((folder / "cmdline").read_bytes().replace(b"\0", b" ").decode())
        except (FileNotFoundError, PermissionError, ProcessLookupError):
            continue  # it ended, or is not ours
    return found
