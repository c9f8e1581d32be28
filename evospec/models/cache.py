"""The folder where fetched and converted models are kept between runs."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from evospec.errors import EvoSpecError
from evospec.models.progress import Progress

CACHE_VARIABLE = "EVOSPEC_CACHE"


def cache_root() -> Path:
    """$EVOSPEC_CACHE, else evospec/ in $XDG_CACHE_HOME or ~/.cache."""
    configured = os.environ.get(CACHE_VARIABLE)
    if configured:
        return Path(configured).expanduser().absolute()
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(base).expanduser().absolute() / "evospec"


def build_once(folder: Path, build: Callable[[Path], None], progress: Progress) -> Path:
    """Makes `folder` with `build`, once, however many processes ask for it at the same time.

    `build` fills an empty temporary folder, which is renamed when it returns: a folder
    that exists is complete. What a killed process left behind is removed first.

    Raises:
        EvoSpecError: the cache can't be written, or its disk is full.
    """
    if folder.is_dir():
        return folder
    with reported_disk_errors(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
        with _locked(folder.with_name(f"{folder.name}.lock"), folder.name, progress):
            if folder.is_dir():
                return folder
            temporary = folder.with_name(f"{folder.name}.partial")
            shutil.rmtree(temporary, ignore_errors=True)
            temporary.mkdir()
            try:
                build(temporary)
                temporary.rename(folder)
            finally:
                shutil.rmtree(temporary, ignore_errors=True)
    return folder


def require_space(folder: Path, needed: int, purpose: str) -> None:
    """Raises EvoSpecError unless the disk of `folder`, which exists, has `needed` free bytes."""
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise EvoSpecError(
            f"{purpose} needs {needed / 1e9:.1f} GB in {folder}, which has {free / 1e9:.1f} GB free: "
            f"make room, or set {CACHE_VARIABLE} to a folder on another disk"
        )


@contextmanager
def reported_disk_errors(folder: Path) -> Iterator[None]:
    """Turns what the operating system says about the cache's disk into one line."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise EvoSpecError(
                f"the disk of {folder.parent} is full: make room, or set {CACHE_VARIABLE} "
                "to a folder on another disk"
            ) from error
        if error.errno is not None:
            raise EvoSpecError(
                f"cannot write to the cache: {error.filename or folder}: {error.strerror}; "
                f"set {CACHE_VARIABLE} to a folder that can be written"
            ) from error
        raise


@contextmanager
def _locked(path: Path, name: str, progress: Progress) -> Iterator[None]:
    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        with progress.step(f"waiting for another process that prepares {name}"):
            lock.acquire()
    try:
        yield
    finally:
        lock.release()
