"""What an arm costs besides its cycles: memory, graphs, and changes made between cycles."""

from __future__ import annotations

from evospec.bench.record import Record


class DeviceMemory(Record):
    """What decoding takes of a CUDA device, in MiB.

    Attributes:
        weights_mb: parameters of target and drafter; arms share these.
        cache_mb: keys and values of all slots, the drafter's too.
        models_mb: what the loaded models hold besides their parameters; arms share it.
        buffers_mb: what the engine holds from its building on besides keys and values: active rows,
            the slots' state, copies of weights.
        graphs_mb: what the device has less of after the engine was prepared: graphs and their buffers,
            kernels, workspaces of libraries. The first arms of a run pay for what all of them use.
        transient_mb: the most that a timed turn allocated for a while.
    """

    weights_mb: float
    cache_mb: float
    models_mb: float
    buffers_mb: float
    graphs_mb: float
    transient_mb: float

    @property
    def overhead_mb(self) -> float:
        """All but weights, keys and values."""
        return self.models_mb + self.buffers_mb + self.graphs_mb + self.transient_mb


class Change(Record):
    """A change made between two cycles, as running requests feel it. Times are medians.

    Attributes:
        repeats: how often it was made.
        rows: head rows that each one wrote, in the mean; None where it writes none.
        call_us: of the call itself, until it returns.
        added_us: what the change and the cycles around it take longer than as many without one.
        share: of `added_us` in the time of one cycle without a change.
        captures: CUDA graphs captured in these cycles.
    """

    repeats: int
    rows: float | None
    call_us: float
    added_us: float
    share: float
    captures: int


class Upkeep(Record):
    """What changes cost a running engine.

    Attributes:
        cycle_us: a cycle without one, median.
        captures: CUDA graphs captured in cycles without one: what changes are held against.
        update: of active rows; None where they never change.
        swap: of the adapter.
    """

    cycle_us: float
    captures: int
    update: Change | None
    swap: Change | None


class ArmCosts(Record):
    """Of one arm of our engine, over all domains.

    Attributes:
        name, batch: as in `Run`, the name being its label.
        captures_before: CUDA graphs captured before the timed turns.
        captures_timed: in the timed turns, which they make slower.
        memory: None without a CUDA device.
        upkeep: None where nothing drafts, and when it was not measured.
    """

    name: str
    batch: int
    captures_before: int
    captures_timed: int
    memory: DeviceMemory | None
    upkeep: Upkeep | None
