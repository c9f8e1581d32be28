"""What parts share while they run: settings, folder, clock, and models that are loaded once."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console

from evospec.bench.adapters import pieces_of
from evospec.bench.decode import SHORTEST, config_of
from evospec.bench.models import BenchModels
from evospec.bench.paper.clock import CallClock
from evospec.bench.paper.lineup import Lineup
from evospec.bench.paper.settings import PaperSettings


@dataclass(slots=True)
class Work:
    settings: PaperSettings
    folder: Path
    clock: CallClock
    console: Console
    _models: BenchModels | None = field(default=None)

    @property
    def models(self) -> BenchModels:
        """Target and drafter. Raises EvoSpecError: one is not usable."""
        if self._models is None:
            with self.console.status("loading models"):
                config = config_of(self.settings.decode(()), SHORTEST)
                self._models = BenchModels.load(config, drafts=True)
        return self._models

    def release_models(self) -> None:
        """Where a part needs the memory."""
        self._models = None

    @property
    def adapters(self) -> tuple[tuple[str, Path], ...]:
        """Those that were learned, with their files."""
        files = [(one.name, self.folder / "adapters" / one.name) for one in self.settings.learning.learners]
        return tuple((name, file) for name, file in files if pieces_of(file))

    @property
    def lineup(self) -> Lineup:
        return Lineup.of(self.settings, tuple(name for name, _ in self.adapters))
