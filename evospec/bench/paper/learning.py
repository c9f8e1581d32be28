"""Parts about adapting: learning from a stream, and what updates take."""

from __future__ import annotations

import shutil

from evospec.bench.adapters import write_adapter
from evospec.bench.align_command import cost_line
from evospec.bench.align_stream import AlignStream, AlignStreamSettings
from evospec.bench.paper.domains import headline_domains
from evospec.bench.paper.lineup import EVOSPEC
from evospec.bench.paper.settings import ADAPT
from evospec.bench.paper.work import Work
from evospec.bench.prompts import read_prompts
from evospec.bench.results import Results
from evospec.bench.settings import Lessons
from evospec.bench.update_memory import SHAPES, MemorySettings, measure_updates
from evospec.models.adapter import AdapterWeights

_BASE = AdapterWeights(1, {})  # an arm whose gate let nothing pass drafts as it did
_WARM_UP_S = 60.0  # graphs and kernels of all arms


def learn(work: Work) -> Results:
    """Lets drafters learn from the `adapt` prompts of the specialised domains, and keeps what they learned.

    Raises:
        EvoSpecError: an arm or prompt file is not usable.
    """
    learning = work.settings.learning
    stream = AlignStream.of(_stream_settings(work), work.models)
    with work.console.status("warming up"):
        stream.warm_up()
    for _ in stream.stream():  # ends early where time is short: the results say after how many requests
        work.console.print(f"learned from {stream.place} of {stream.planned} requests", markup=False)
    folder = work.folder / "adapters"
    shutil.rmtree(folder, ignore_errors=True)  # of an attempt that did not come to its end
    folder.mkdir()
    by_text = {arm.arm.text: arm for arm in stream.arms}
    for one in learning.learners:
        arm = by_text.get(one.arm)  # gone if it ran out of memory: the results say so
        if arm is not None and arm.learner is not None:
            write_adapter(arm.learner.latest or _BASE, folder / one.name)
            work.console.print(cost_line(arm.learner.log.costs(one.name, arm.learner.trainer)), markup=False)
    return stream.results()


def memory(work: Work) -> Results:
    """What updates take of each way to adapt, at the target's shapes."""
    settings = work.settings
    asked = MemorySettings(
        memory_shapes(work) or "",
        tuple(one.arm for one in settings.learning.learners),
        device=settings.device,
        dtype=settings.dtype,
        threads=settings.threads,
        updates=settings.memory_updates,
        steps=settings.memory_steps,
    )
    return measure_updates(asked, lambda costs: work.console.print(cost_line(costs), markup=False))


def memory_shapes(work: Work) -> str | None:
    """None where the target's shapes are not among those that `bench memory` knows."""
    settings = work.settings
    named = settings.memory_shapes or settings.target
    return named if settings.memory_shapes or named in SHAPES else None


def _stream_settings(work: Work) -> AlignStreamSettings:
    settings, learning = work.settings, work.settings.learning
    found = read_prompts(settings.prompts, split=ADAPT)
    topics = headline_domains([prompt.domain for prompt in found])
    decode = settings.decode(
        (EVOSPEC,),
        split=None,
        limit=None,
        batch=learning.batch,
        max_tokens=learning.max_tokens,
        lessons=Lessons(),
    )
    arms = tuple(one.arm for one in learning.learners)
    minutes = None if work.clock.minutes is None else max(0.0, work.clock.left - _WARM_UP_S) / 60
    return AlignStreamSettings(
        decode, ("none", *arms), topics, learning.every, learning.rounds, eval_limit=1, minutes=minutes
    )
