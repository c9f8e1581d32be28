"""The engine's key/value cache: one contiguous slot per request.

Rolling back is exact and free: a row's length says which keys exist, and the
causal mask hides everything past it, so rejected keys are never read.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Window:
    """Which slots and positions one forward pass writes and reads.

    Attributes:
        first_slot: the pass covers slots [first_slot, first_slot + rows).
        starts: first position written per row, on the device [rows].
        width: positions written per row.
        span: keys read per row: positions [0, span).
        single_start: the position, on the host, when there is one row; lets the
            write be a plain slice copy.
    """

    first_slot: int
    starts: Tensor
    width: int
    span: int
    single_start: int | None = None

    @classmethod
    def of(cls, starts: list[int], width: int, device: torch.device, first_slot: int = 0) -> Window:
        return cls(
            first_slot=first_slot,
            starts=torch.tensor(starts, device=device),
            width=width,
            span=max(starts) + width,
            single_start=starts[0] if len(starts) == 1 else None,
        )

    @property
    def rows(self) -> int:
        return self.starts.shape[0]

    def positions(self) -> Tensor:
        """Position of each query [rows, width]."""
        return self.starts[:, None] + torch.arange(self.width, device=self.starts.device)


class KVCache:
    """Keys and values of all layers, [slots, kv_heads, positions, head_dim] each.

    Speaks the part of transformers' cache protocol that decoder layers use
    (`update`), writing through the window bound for the current pass.
    """

    __slots__ = ("_window", "keys", "values")

    def __init__(
        self,
        layers: list[tuple[int, int]],
        slots: int,
        positions: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        """`layers` gives (kv_heads, head_dim) per layer."""
        self.keys = [
            torch.zeros(slots, heads, positions, dim, dtype=dtype, device=device) for heads, dim in layers
        ]
        self.values = [torch.zeros_like(key) for key in self.keys]
        self._window: Window | None = None

    @property
    def slots(self) -> int:
        return self.keys[0].shape[0]

    @property
    def positions(self) -> int:
        return self.keys[0].shape[2]

    def bind(self, window: Window) -> None:
        if window.span > self.positions:
            raise IndexError(f"cache has {self.positions} positions, this pass needs {window.span}")
        self._window = window

    def update(
        self, key: Tensor, value: Tensor, layer_idx: int, *_: object, **__: object
    ) -> tuple[Tensor, Tensor]:
        """Writes [rows, kv_heads, width, head_dim] and returns all keys and values up to the span."""
        window = self._window
        if window is None:
            raise RuntimeError("KVCache.update before bind: no window says where to write")
        return (
            _write_and_view(self.keys[layer_idx], key, window),
            _write_and_view(self.values[layer_idx], value, window),
        )

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Part of transformers' protocol; positions are always passed explicitly, so it is 0."""
        return 0

    def move(self, source: int, target: int, length: int) -> None:
        """Copies the first `length` positions of slot `source` over slot `target`."""
        for buffer in (*self.keys, *self.values):
            buffer[target, :, :length] = buffer[source, :, :length]


def _write_and_view(buffer: Tensor, fresh: Tensor, window: Window) -> Tensor:
    slots = buffer[window.first_slot : window.first_slot + window.rows]
    if window.single_start is not None:
        slots[:, :, window.single_start : window.single_start + window.width] = fresh
    else:
        rows = torch.arange(window.rows, device=buffer.device)[:, None]
        # Two index tensors around a slice put the indexed axes first: [rows, width, kv_heads, head_dim].
        slots[rows, :, window.positions()] = fresh.transpose(1, 2)
    return slots[:, :, : window.span]
