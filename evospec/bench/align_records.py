"""What a stream shows of ways to adapt: records of its chunks, topics and updates."""

from __future__ import annotations

from typing import Literal

from evospec.bench.record import Record

RECOVERED = 0.95  # of a topic's plateau


class StreamChunk(Record):
    """Requests of one topic decoded together, by one arm.

    Attributes:
        place: requests of the stream before it.
        visit: number of the stay at a topic that it belongs to, from 0.
        drafts: cycles that drafted; `accepted` of their draft tokens stood.
        adapter_version: in force.
        same_output: share of its requests whose output is the first arm's.
    """

    arm: str
    place: int
    visit: int
    topic: str
    requests: int
    tokens: int
    drafts: int
    accepted: int
    acceptance_length: float
    adapter_version: int
    same_output: float
    seconds: float


class TopicVisit(Record):
    """One arm between two switches.

    Attributes:
        returns: whether the topic was there before.
        gain: acceptance length over that of no adaptation on the same requests.
        late_gain: the same of its last quarter.
        recovered_after: requests since the switch before the first window of some whose gain is 0.95
            of the topic's plateau, which is `late_gain` of the topic's last visit; None: it never was.
    """

    arm: str
    visit: int
    topic: str
    returns: bool
    requests: int
    acceptance_length: float
    gain: float
    late_gain: float
    recovered_after: int | None


class UpdateCosts(Record):
    """What adapting took.

    Attributes:
        updates: how often there were steps between two chunks, `steps` how many in all.
        published, rejected: candidates that were swapped in, and that the gate kept back.
        traces: admitted; `trace_mb` is what the replay buffer holds of them, in host memory.
        step_ms: median over steps; so is `update_ms` over updates, gate and swap included.
        held_mb: what stays on the device for adapting: the trainer's drafter, what it trains, moments.
        peak_mb: the most that adapting held at once, in steps, gate and swap.
        measure: `allocator`: of CUDA's memory; `tensors`: bytes of the tensors that operations make.
    """

    arm: str
    updates: int
    steps: int
    published: int
    rejected: int
    traces: int
    trace_mb: float
    trained_parameters: int
    step_ms: float
    update_ms: float
    seconds: float
    held_mb: float
    peak_mb: float
    measure: Literal["allocator", "tensors"]


class ArmFailure(Record):
    """An arm that had to be given up, after so many requests."""

    arm: str
    place: int
    problem: str


class Alignment(Record):
    """A whole stream; held-out prompts are the results' runs.

    Attributes:
        planned: requests that the stream was to have; `requests` that it had in the time there was.
        continued: requests that went on from an earlier answer.
    """

    planned: int
    requests: int
    continued: int
    chunks: tuple[StreamChunk, ...]
    visits: tuple[TopicVisit, ...] = ()
    failures: tuple[ArmFailure, ...] = ()
