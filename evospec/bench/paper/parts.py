"""The parts that a paper bench is measured in, each within minutes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from evospec.bench.arms import ArmError
from evospec.bench.paper.decoding import batched, headline, peers, sampled, trees
from evospec.bench.paper.learning import learn, memory, memory_shapes
from evospec.bench.paper.names import BATCH, HEADLINE, LEARN, MEMORY, PEERS, SAMPLED, STREAM, TIMING, TREES
from evospec.bench.paper.switching import switching
from evospec.bench.paper.timing import time_shapes
from evospec.bench.paper.work import Work
from evospec.bench.results import Results

# Rough seconds on one H200: an engine's graphs, an answer of ours, one of transformers' in each mode.
_ENGINE_S, _ANSWER_S, _PEER_S = 6.0, 0.14, 5.0


@dataclass(frozen=True, slots=True)
class Part:
    """One part.

    Attributes:
        expected: seconds on one H200, roughly; where it is slower, by as much as the parts before were.
    """

    name: str
    title: str
    expected: float
    run: Callable[[Work], Results]


def all_parts(work: Work) -> list[Part]:
    """In the order in which they run: what others need comes first, then what the claim rests on."""
    settings = work.settings
    answers = _ANSWER_S * settings.max_tokens / 256
    topics = 4
    learners = len(settings.learning.learners)

    def decoding(engines: int, prompts: int, learning: int) -> float:
        taught = learning * topics * settings.lessons
        return 20 + engines * _ENGINE_S + answers * (engines * prompts * topics + taught)

    requests = settings.learning.every * settings.learning.rounds * (topics - 1)
    few = settings.few
    return [
        Part(LEARN, "learning from a stream", 40 + learners * requests * 0.13, learn),
        Part(HEADLINE, "all arms, greedy chains, batch 1", decoding(14, settings.limit + 3, 6), headline),
        Part(
            STREAM,
            "a stream whose topic switches",
            decoding(6, settings.every * settings.rounds, 3),
            switching,
        ),
        *(
            Part(
                f"{BATCH}{size}",
                f"batch {size}",
                decoding(7, max(settings.batches), 4) / 2,
                partial(batched, batch=size),
            )
            for size in settings.batches
        ),
        Part(TREES, "trees and the controller", decoding(11, few, 5), trees),
        Part(SAMPLED, "temperature 1", decoding(6, few, 3), sampled),
        Part(PEERS, "transformers' own generation", 90 + topics * settings.peers * 3 * _PEER_S, peers),
        *([] if memory_shapes(work) is None else [Part(MEMORY, "memory of adapting", 45, memory)]),
        *(
            Part(
                f"{TIMING}{name}", f"{name}, random weights: timing only", 60, partial(time_shapes, name=name)
            )
            for name in settings.shapes
        ),
    ]


def chosen_parts(parts: Sequence[Part], names: Sequence[str]) -> list[Part]:
    """Those that are named, or begin with a name; all, when none is. Raises ArmError naming what there is."""
    for name in names:
        if not any(part.name.startswith(name) for part in parts):
            raise ArmError(f"unknown part {name!r}: choose some of {', '.join(part.name for part in parts)}")
    return [part for part in parts if not names or any(part.name.startswith(name) for name in names)]
