"""Publishes from another process, so that the one under test spends no time on it."""

from __future__ import annotations

import itertools
import multiprocessing
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import closing
from pathlib import Path
from types import TracebackType

from safetensors.torch import load_file

from evospec.config import RegistryConfig
from evospec.wire import Fingerprints
from services.registry import open_registry
from tests.chaos.kit.patience import PATIENCE_S
from tests.chaos.kit.versions import HandPublisher


class RemotePublisher:
    """Publishes adapters in turn, again and again, each time as a new version.

    Args:
        files: the adapters' tensors.
    """

    def __init__(self, config: RegistryConfig, fingerprints: Fingerprints, files: Sequence[Path]) -> None:
        self._config = config
        self._fingerprints = fingerprints
        self._files = itertools.cycle(files)
        # A forked child would have this process's threads half-way through whatever they do.
        self._pool = ProcessPoolExecutor(1, multiprocessing.get_context("spawn"))

    def __enter__(self) -> RemotePublisher:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._pool.shutdown(cancel_futures=True)

    def publish(self) -> int:
        """Returns the version once it is there."""
        done = self._pool.submit(_publish, self._config, self._fingerprints, next(self._files))
        return done.result(PATIENCE_S)


def _publish(config: RegistryConfig, fingerprints: Fingerprints, file: Path) -> int:
    with closing(open_registry(config)) as registry:
        return HandPublisher(registry, fingerprints).publish(load_file(file))
