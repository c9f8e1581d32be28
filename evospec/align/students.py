"""Who learns from the traffic: one student of all of it, or one of each kind."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import TypeVar

import torch
from torch import Tensor

from evospec.align.replay import Admission, ReplayBuffer
from evospec.align.student import Student
from evospec.align.trace import Trace
from evospec.align.training_state import Moments, TrainingState
from evospec.config import AlignmentConfig
from evospec.errors import WireError
from evospec.models.adapter import AdapterWeights
from evospec.models.bank import Bank
from evospec.models.deltas import Deltas
from evospec.models.drafter import Drafter

NOTHING = Deltas({})
T = TypeVar("T")


class Students:
    """With `alignment.adapters` there is a student for each kind of traffic, as soon as enough of it has come
    and while there is a place; without, one that learns from everything.

    Kinds have the numbers that the replay buffer's clusters gave them.
    """

    def __init__(self, config: AlignmentConfig, drafter: Drafter, replay: ReplayBuffer) -> None:
        """`drafter` is the frozen base, float32."""
        self._config = config
        self._drafter = drafter
        self._replay = replay
        self._all: list[Student] = [] if config.adapters else [Student(config, drafter)]

    @property
    def all(self) -> Sequence[Student]:
        """By kind."""
        return self._all

    @property
    def ready(self) -> bool:
        """Whether anybody has enough traces to train on, and any to judge by."""
        return any(self._is_ready(student) for student in self._all)

    @property
    def due(self) -> bool:
        """Whether traces have paid for a step that can be made."""
        return any(student.cadence.earned and self._is_ready(student) for student in self._all)

    def next(self) -> Student | None:
        """Whose traces have paid for most steps that were not made yet; None when nobody has any traces."""
        by_credit = sorted(self._all, key=lambda one: one.cadence.credit, reverse=True)
        return next((one for one in by_credit if self._replay.sides(one.kind)[0]), None)

    def add(self, trace: Trace) -> Admission:
        """Offers a checked trace to the buffer; whoever learns from it is paid for."""
        admission = self._replay.add(trace)
        student = self._of(trace)
        if student is not None:
            student.cadence.observe(trace)
        if admission in (Admission.TRAINING, Admission.HELD_OUT):
            if student is not None:
                student.cadence.admitted()
            self._enrol()
        return admission

    def learned(self, version: int, kept: AdapterWeights, learning: Collection[Student]) -> AdapterWeights:
        """What a version made now carries: of these students what they have learned, of others what `kept`
        does."""
        if not self._config.adapters:
            (student,) = self._all
            return AdapterWeights(version, student.learned().tensors)
        routes = self._replay.clusters.routes()
        if routes is None:
            return AdapterWeights(version, {})
        adapters = [one.learned() if one in learning else published(kept, one.kind) for one in self._all]
        return AdapterWeights(version, {}, bank=Bank(routes, tuple(adapters)))

    def begin_with(self, version: AdapterWeights) -> None:
        """All go on from a published version, with fresh moments.

        Raises:
            WireError: it does not fit the drafter, the configured rank or the number of adapters. Nothing
                is changed then.
        """
        self._check(version)
        if not self._config.adapters:
            (student,) = self._all
            student.begin_with(version)
            return
        fresh: list[Student] = []
        for kind in range(0 if version.bank is None else version.bank.kinds):
            student = Student(self._config, self._drafter, kind)
            student.begin_with(AdapterWeights(version.version, published(version, kind).tensors))
            if kind < len(self._all):
                student.cadence = self._all[kind].cadence
            fresh.append(student)
        self._all = fresh
        self._replay.clusters.begin_with(None if version.bank is None else version.bank.routes)

    @property
    def shapes(self) -> list[dict[str, torch.Size]]:
        """Of all that is trained, by name, of each student."""
        return [_named(student, student.shapes) for student in self._all]

    @property
    def moments(self) -> dict[str, Moments]:
        """Of all students' parameters, by name."""
        return {name: one for each in self._all for name, one in _named(each, each.moments()).items()}

    @property
    def credits(self) -> list[float]:
        """Steps that students are owed, by kind; none where there are no kinds."""
        return [student.cadence.credit for student in self._all] if self._config.adapters else []

    def unpublished(self, carried: Collection[Student]) -> dict[str, Tensor]:
        """Weights by name of students whose learning a version does not carry, or only a cut of it."""
        left = [one for one in self._all if not one.carried_whole or self._is_left(one, carried)]
        return {name: one for each in left for name, one in _named(each, each.weights()).items()}

    def cut(self, carried: Collection[Student]) -> list[int]:
        """Of which of them, by kind, a version carries a cut."""
        return [
            place
            for place, one in enumerate(self._all)
            if not one.carried_whole and not self._is_left(one, carried)
        ]

    def resume(self, state: TrainingState) -> None:
        """Goes on as the students whose state, checked, this is."""
        for place, student in enumerate(self._all):
            moments, weights = _own(student, state.moments), _own(student, state.weights)
            student.resume(moments, weights, carried=place in state.cut)
        for student, credit in zip(self._all, state.credits, strict=False):
            student.cadence.resume(credit)

    def _check(self, version: AdapterWeights) -> None:
        version.check(self._drafter)
        places, bank = self._config.adapters, version.bank
        if not places and bank is not None:
            raise WireError(
                f"adapter version {version.version} has adapters for {bank.kinds} kinds of traffic, this "
                f"aligner trains one for all: set alignment.adapters to {bank.kinds}, or start from version 0"
            )
        if places and version.tensors:
            raise WireError(
                f"adapter version {version.version} has one adapter for all traffic, this aligner trains one "
                "for each kind: set alignment.adapters to 0, or start from version 0"
            )
        if places and bank is not None and bank.kinds > places:
            raise WireError(
                f"adapter version {version.version} has adapters for {bank.kinds} kinds of traffic, this "
                f"aligner trains {places}: set alignment.adapters to {bank.kinds}, or start from version 0"
            )

    def _of(self, trace: Trace) -> Student | None:
        if not self._config.adapters:
            return self._all[0]
        (kind,) = self._replay.clusters.kinds_of([trace]).tolist()
        return self._all[kind] if 0 <= kind < len(self._all) else None

    def _enrol(self) -> None:
        """Takes in a student for a kind that has enough traces now, and half of an equal share of the
        requests; these have paid for its first steps.

        Places are few: when all are taken, a cluster with half of an equal share of the clusters joins the
        kind that is nearest to it.
        """
        config, clusters = self._config, self._replay.clusters
        vacant = len(self._all) < config.adapters
        if not config.adapters or (clusters.full and not vacant):
            return
        share = 1 / (2 * (config.adapters if vacant else config.replay_clusters))
        found = self._replay.waiting(config.min_traces, share)
        if found is None:
            return
        if vacant:
            self._all.append(Student(config, self._drafter, clusters.number(found.place)))
        student = self._all[-1 if vacant else clusters.join(found.place)]
        for _ in range(found.traces):
            student.cadence.admitted()

    def _is_left(self, student: Student, carried: Collection[Student]) -> bool:
        """Whether a version leaves out what it has learned; one for all traffic it always carries."""
        return bool(self._config.adapters) and student.ahead and student not in carried

    def _is_ready(self, student: Student) -> bool:
        training, held_out = self._replay.sides(student.kind)
        return min(training, held_out) > 0 and training + held_out >= self._config.min_traces


def _prefix(student: Student) -> str:
    return "" if student.kind is None else f"kinds.{student.kind}."


def _named(student: Student, values: Mapping[str, T]) -> dict[str, T]:
    """A student's, by names that no other's have."""
    return {_prefix(student) + name: value for name, value in values.items()}


def _own(student: Student, values: Mapping[str, T]) -> dict[str, T]:
    """The other way round."""
    prefix = _prefix(student)
    return {name.removeprefix(prefix): one for name, one in values.items() if name.startswith(prefix)}


def published(version: AdapterWeights, kind: int | None) -> Deltas:
    """What requests of a kind draft with, or those of none; nothing is the base."""
    if kind is None:
        return version.general
    bank = version.bank
    return NOTHING if bank is None or kind >= bank.kinds else bank.adapters[kind]
