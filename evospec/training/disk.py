"""Files that are whole or not there: written beside, flushed to the disk, renamed."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from evospec.errors import EvoSpecError


class DiskError(EvoSpecError):
    """A folder can't be written to: it is full, say."""


@contextmanager
def disk_errors(folder: Path, advice: str) -> Iterator[None]:
    """One line that names the folder and ends in the advice, in place of what the writer raised.

    Raises:
        DiskError: the operating system refused.
    """
    try:
        yield
    except (OSError, SafetensorError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise DiskError(f"cannot write to {folder}: {reason}; {advice}") from None


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Gives a path beside `path` to write to; what is there afterwards takes its place at once.

    When writing fails, `path` is as it was and nothing is left beside it.
    """
    partial = path.with_name(path.name + ".partial")
    try:
        yield partial
        _flush(partial)
        partial.replace(path)
        _flush(path.parent)
    finally:
        partial.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    with replacing(path) as partial:
        partial.write_text(text, encoding="utf-8")


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
