"""Publishes from another process, so that the one under test spends no time on it.

Run as `python -m tests.chaos.kit.remote_publisher`; see `main` for what it reads and writes.
"""

from __future__ import annotations

import itertools
import subprocess
import sys
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from types import TracebackType

from safetensors.torch import load_file

from evospec.config import RegistryConfig
from evospec.wire import Fingerprints
from services.registry import open_registry
from tests.chaos.kit.patience import PATIENCE_S
from tests.chaos.kit.versions import HandPublisher

ROOT = Path(__file__).parents[3]


class RemotePublisher:
    """Publishes adapters in turn, again and again, each time as a new version.

    Args:
        files: the adapters' tensors.
    """

    def __init__(self, config: RegistryConfig, fingerprints: Fingerprints, files: Sequence[Path]) -> None:
        self._settings = (config.model_dump_json(), fingerprints.model_dump_json())
        self._files = itertools.cycle(files)
        # `multiprocessing` would leave a process of its own (its resource tracker) behind.
        self._process = subprocess.Popen(
            [sys.executable, "-m", __name__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
        )

    def __enter__(self) -> RemotePublisher:
        for line in self._settings:
            self._tell(line)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            self._process.communicate(timeout=PATIENCE_S)
        finally:
            self._process.kill()

    def publish(self) -> int:
        """Returns the version once it is there."""
        self._tell(str(next(self._files)))
        assert self._process.stdout is not None
        return int(self._process.stdout.readline())

    def _tell(self, line: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(f"{line}\n")
        self._process.stdin.flush()


def main() -> None:
    """Reads settings and fingerprints, a line each, then files; publishes each and prints its version."""
    config = RegistryConfig.model_validate_json(sys.stdin.readline())
    fingerprints = Fingerprints.model_validate_json(sys.stdin.readline())
    with closing(open_registry(config)) as registry:
        publisher = HandPublisher(registry, fingerprints)
        for file in sys.stdin:
            print(publisher.publish(load_file(file.strip())), flush=True)


if __name__ == "__main__":
    main()
