"""CUDA graphs by key: what runs the same kernels again and again is launched as one."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

T = TypeVar("T")

_SHORTEST_SPAN = 256
_CAPTURED: ContextVar[bool] = ContextVar("captured", default=False)


def is_captured() -> bool:
    """Whether what runs now becomes part of a graph, or is the trial run before."""
    return _CAPTURED.get()


@dataclass(frozen=True, slots=True)
class _Captured(Generic[T]):
    graph: torch.cuda.CUDAGraph
    output: T


def round_span(span: int, limit: int) -> int:
    """Spans are rounded up to powers of two, so that few graphs are captured: kernels stop at each
    row's own end."""
    return min(max(1 << (span - 1).bit_length(), _SHORTEST_SPAN), limit)


class Graphs(Generic[T]):
    """Runs functions whose tensors stay where they are.

    On a CUDA device a function is captured at the first call with its key and replayed
    at every call; elsewhere it is simply called. Graphs share one memory pool, so an
    output holds until the next run of any key.

    Args:
        beside: shares its pool: an output of either holds until the next run of any key of both.

    Attributes:
        captures: graphs captured so far.
    """

    __slots__ = ("_captured", "_enabled", "_pool", "captures")

    def __init__(self, device: torch.device, beside: Graphs[Any] | None = None) -> None:
        self._enabled = device.type == "cuda"
        self._captured: dict[Hashable, _Captured[T]] = {}
        self._pool = None
        if self._enabled:
            self._pool = torch.cuda.graph_pool_handle() if beside is None else beside._pool
        self.captures = 0

    @property
    def captures_them(self) -> bool:
        """Whether functions are captured here."""
        return self._enabled

    def run(self, key: Hashable, function: Callable[[], T], state: Sequence[Tensor] = ()) -> T:
        """Runs `function`, or replays what it did.

        Args:
            key: tells apart whatever changes the kernels: shapes, spans, branches on the host.
            function: reads and writes only tensors that outlive it, and never waits for the device.
            state: tensors that it changes by reading them; the trial run before a capture must
                leave no trace in them.
        """
        if not self._enabled:
            return function()
        captured = self._captured.get(key)
        if captured is None:
            marked = _CAPTURED.set(True)
            try:
                captured = self._captured[key] = self._capture(function, state)
            finally:
                _CAPTURED.reset(marked)
        captured.graph.replay()
        return captured.output

    def _capture(self, function: Callable[[], T], state: Sequence[Tensor]) -> _Captured[T]:
        saved = [tensor.clone() for tensor in state]
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            function()  # compiles kernels and lets libraries allocate their workspaces
        torch.cuda.current_stream().wait_stream(side)
        for tensor, before in zip(state, saved, strict=True):
            tensor.copy_(before)
        graph = torch.cuda.CUDAGraph()
        # What cuBLAS works in is kept for all later captures, in the pool of whoever came first: their
        # graphs would break once that pool is gone. So each capture takes its own, and gives it back.
        _forget_workspaces()
        # Other threads, which bring adapters, may use the device meanwhile.
        with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
            output = function()
        _forget_workspaces()
        self.captures += 1
        return _Captured(graph, output)


def _forget_workspaces() -> None:
    torch._C._cuda_clearCublasWorkspaces()  # PyTorch's notes on CUDA semantics name it; there is no other
