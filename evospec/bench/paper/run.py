"""Runs a paper bench, part by part, for as long as a call may take."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import torch
from rich.console import Console
from rich.markup import escape

from evospec.bench.align_arms import parse_align_arms
from evospec.bench.paper.clock import CallClock, OutOfTimeError
from evospec.bench.paper.fingerprint import PaperFingerprint, code_hash
from evospec.bench.paper.lineup import EVOSPEC
from evospec.bench.paper.parts import Part, all_parts, chosen_parts
from evospec.bench.paper.report import write_paper
from evospec.bench.paper.settings import PaperSettings
from evospec.bench.paper.shapes import check_shapes
from evospec.bench.paper.state import SECONDS, PaperFolder, Progress, seconds_of
from evospec.bench.paper.work import Work
from evospec.bench.prompts import read_prompts
from evospec.bench.results import Results
from evospec.errors import EvoSpecError
from evospec.heap import release_heap
from evospec.models.drafter_store import resolve_drafter
from evospec.models.loading import pick_device, resolve_target

_LEAST_SHARE = 0.1  # of a part that was given up: what is less says little


@dataclass(frozen=True, slots=True)
class Call:
    """How one call of the command goes about it.

    Attributes:
        minutes: it stops before; None: all parts run.
        parts: names, or their beginnings; none: all.
        restart, mixed: see `PaperFolder.open`.
    """

    minutes: float | None = None
    parts: tuple[str, ...] = ()
    restart: bool = False
    mixed: bool = False


@dataclass(frozen=True, slots=True)
class Outcome:
    """Attributes:
    left: parts that are still to be measured, of those asked for.
    broken: those that failed in the last attempt, among them.
    """

    results: Results | None
    left: tuple[str, ...]
    broken: tuple[str, ...]


def run_paper(
    settings: PaperSettings, out: Path, call: Call = Call(), clock: CallClock | None = None
) -> Outcome:
    """Measures what is left, as far as there is time, and writes results.json, report.md and plots.

    Raises:
        EvoSpecError: bad settings, prompts, models, or a folder that can't be written or was begun otherwise.
    """
    clock = clock or CallClock(call.minutes)
    console = Console(stderr=True, highlight=False)
    _check(settings)
    folder = PaperFolder(out)
    progress = folder.open(PaperFingerprint.of(settings), restart=call.restart, mixed=call.mixed)
    work = Work(settings, out, clock, console)
    parts = chosen_parts(all_parts(work), call.parts)
    progress = _measure(work, folder, progress, parts)
    done = folder.parts()
    results = write_paper(out) if done else None
    left = tuple(part.name for part in parts if part.name not in done)
    _tell_left(left, console, out)
    return Outcome(results, left, tuple(name for name in left if name in progress.failed))


def _check(settings: PaperSettings) -> None:
    """What can be wrong without loading anything."""
    check_shapes(settings.shapes)
    parse_align_arms([one.arm for one in settings.learning.learners], EVOSPEC)
    read_prompts(settings.prompts, split="eval", limit=1)
    read_prompts(settings.prompts, split="adapt", limit=1)
    pick_device(settings.device)
    resolve_target(settings.target)
    if settings.drafter != "default":
        resolve_drafter(settings.drafter, settings.target)


def _measure(work: Work, folder: PaperFolder, progress: Progress, parts: Sequence[Part]) -> Progress:
    """Runs what is not done yet and fits into the time; the first part is begun in any case."""
    begun = False
    for part in parts:
        done = folder.parts()
        needed = _expected(part, parts, done, progress)
        if part.name in done or (begun and needed > work.clock.left):
            continue
        begun = True
        work.console.print(f"[bold]{part.name}[/]: {part.title}, about {needed / 60:.1f} minutes")
        progress = _attempt(part, work, folder, progress)
        _release()
    return progress


def _attempt(part: Part, work: Work, folder: PaperFolder, progress: Progress) -> Progress:
    """Keeps a part's results, or notes why there are none: other parts are measured all the same."""
    began = work.clock.seconds
    failed = {name: problem for name, problem in progress.failed.items() if name != part.name}
    expected = progress.expected
    try:
        results = part.run(work)
        folder.keep(part.name, _described(results, part, work.clock.seconds - began, work.settings))
    except OutOfTimeError as stopped:
        spent = work.clock.seconds - began
        expected = expected | {part.name: spent / max(stopped.share, _LEAST_SHARE)}
        work.console.print(f"no time to finish {part.name}: nothing of it is kept")
    except Exception as error:  # noqa: BLE001  whatever broke a part, the others are worth measuring
        if not isinstance(error, EvoSpecError):  # a bug, or a device that gave up: all there is to know
            work.console.print_exception()
        failed[part.name] = " ".join(str(error).split())[:300] or type(error).__name__
        work.console.print(f"{part.name} failed: {failed[part.name]}", markup=False)
    progress = progress.model_copy(update={"expected": expected, "failed": failed})
    folder.save(progress)
    return progress


def _expected(part: Part, parts: Sequence[Part], done: dict[str, Results], progress: Progress) -> float:
    """Seconds that a part takes: as an attempt showed, or as much slower than thought as others were."""
    if part.name in progress.expected:
        return progress.expected[part.name]
    slower = [seconds_of(done[one.name]) / one.expected for one in parts if one.name in done]
    return part.expected * (median(slower) if slower else 1.0)


def _described(results: Results, part: Part, seconds: float, paper: PaperSettings) -> Results:
    runs = tuple(run.model_copy(update={"part": part.name}) for run in results.runs)
    turns = tuple(turn.model_copy(update={"part": part.name}) for turn in results.turns)
    settings = {
        "part": part.name,
        "title": part.title,
        SECONDS: seconds,
        "code": code_hash(),
        **results.settings,
        "paper": paper.described(),
    }
    return results.model_copy(update={"runs": runs, "turns": turns, "settings": settings})


def _release() -> None:
    release_heap()  # engines hold device memory, and refer to themselves
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _tell_left(left: Sequence[str], console: Console, out: Path) -> None:
    console.print(f"results.json, report.md and plots are in {escape(str(out))}", soft_wrap=True)
    if left:
        console.print(f"left: {', '.join(left)}; the same command goes on with them", soft_wrap=True)
