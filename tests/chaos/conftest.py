"""One cluster for as many scenarios as can share it."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack

import pytest

from tests.chaos.kit.learned_models import LearnedModels, learned_models
from tests.chaos.kit.patience import wait_for
from tests.chaos.kit.rig import Rig, rig_config, started_rig
from tests.integration.process_kit import descendants, marked_environment

REPLICAS = 4  # of which one may be a canary


class OneRig:
    """The rig that runs now: a process can have one cluster at a time."""

    def __init__(self) -> None:
        self._kind = ""
        self._rig: Rig | None = None
        self._started = ExitStack()

    def get(self, kind: str, start: Callable[[], AbstractContextManager[Rig]]) -> Rig:
        """The running rig if it is of that kind; else that one is stopped and another started."""
        if self._rig is None or self._kind != kind:
            self.stop()
            self._rig, self._kind = self._started.enter_context(start()), kind
        return self._rig

    def stop(self) -> None:
        self._started.close()
        self._rig = None


@pytest.fixture(scope="session")
def one_rig() -> Iterator[OneRig]:
    if sys.platform != "linux":
        pytest.skip("the processes of actors are watched through /proc")
    os.environ.update(marked_environment())
    rigs = OneRig()
    try:
        yield rigs
    finally:
        rigs.stop()
    left: list[str] = []

    def nothing_stays_behind() -> bool:
        left[:] = descendants()
        return not left

    try:
        wait_for(nothing_stays_behind)
    except AssertionError:
        raise AssertionError(f"processes stay behind: {'; '.join(left)}") from None


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> LearnedModels:
    return learned_models(tmp_path_factory.mktemp("models"))


@pytest.fixture
def rig(one_rig: OneRig, models: LearnedModels, tmp_path_factory: pytest.TempPathFactory) -> Rig:
    """A cluster with nothing broken, whose aligner publishes nothing."""

    def start() -> AbstractContextManager[Rig]:
        return started_rig(models, rig_config(models, REPLICAS), tmp_path_factory.mktemp("registry"))

    rig = one_rig.get("shared", start)
    rig.repair()
    return rig


@pytest.fixture
def learning_rig(rig: Rig) -> Rig:
    """The same, with versions of its aligner rolling out as soon as there is traffic."""
    rig.start_learning()
    return rig
