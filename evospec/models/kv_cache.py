"""The engine's key/value cache: one contiguous slot per request.

Rolling back is exact and free: a row's length says which keys exist, and the
causal mask hides everything past it, so rejected keys are never read.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Tree:
    """How places hang together when they are not a chain.

    A tree may be run in several passes; its places are counted through all of them.

    Attributes:
        depths: distance of each place of this pass from the tree's first position, int64
            [rows, width]: what rotary embedding counts.
        ancestors: bit b says that place b of the tree is an ancestor of this one, or itself,
            int64 [rows, width].
        first: places of earlier passes.
    """

    depths: Tensor
    ancestors: Tensor
    first: int = 0


MOST_PLACES = 63  # bits of an ancestor mask


@dataclass(frozen=True, slots=True)
class Window:
    """Which slots and positions one forward pass writes and reads.

    Attributes:
        first_slot: the pass covers slots [first_slot, first_slot + rows).
        starts: first position written per row, on the device [rows]; of a tree, where its first
            place is written.
        width: positions written per row.
        span: keys read per row: positions [0, span).
        single_start: the position, on the host, when there is one row; lets the
            write be a plain slice copy.
        tree: shape of the window's places; None is a chain, each seeing all before it.
        fresh: every row starts at position 0 and reads what it writes, no more.
    """

    first_slot: int
    starts: Tensor
    width: int
    span: int
    single_start: int | None = None
    tree: Tree | None = None
    fresh: bool = False

    @classmethod
    def of(cls, starts: list[int], width: int, device: torch.device, first_slot: int = 0) -> Window:
        single = starts[0] if len(starts) == 1 else None
        where = (
            torch.tensor(starts, device=device) if single is None else torch.full((1,), single, device=device)
        )
        return cls(
            first_slot=first_slot,
            starts=where,  # one is filled in by the device: the host would wait for what it sends
            width=width,
            span=max(starts) + width,
            single_start=single,
            fresh=max(starts) == 0,
        )

    @classmethod
    def from_start(cls, rows: int, width: int, device: torch.device) -> Window:
        """Positions 0..width-1 of the first `rows` slots."""
        starts = torch.zeros(rows, dtype=torch.int64, device=device)
        return cls(first_slot=0, starts=starts, width=width, span=width, fresh=True)

    @property
    def rows(self) -> int:
        return self.starts.shape[0]

    def cells(self) -> Tensor:
        """Where in its slot each place is written [rows, width]."""
        first = 0 if self.tree is None else self.tree.first
        return self.starts[:, None] + torch.arange(first, first + self.width, device=self.starts.device)

    def positions(self) -> Tensor:
        """Position of each place in its sequence [rows, width]; places of a tree may share one."""
        return self.cells() if self.tree is None else self.starts[:, None] + self.tree.depths

    def mask(self, sliding_window: int | None = None) -> Tensor:
        """Which keys each place may see, bool [rows, 1, width, span]; True means attend.

        Args:
            sliding_window: keys further back than this are hidden; None sees all. A tree that
                slides must be run in one pass.
        """
        keys = torch.arange(self.span, device=self.starts.device)
        if self.tree is None:
            queries = self.cells()
            seen = keys <= queries[..., None]
            if sliding_window is not None:
                seen &= keys > queries[..., None] - sliding_window
            return seen[:, None]
        place = keys - self.starts[:, None]  # [rows, span]; negative: context
        bits = self.tree.ancestors[..., None] >> place.clamp(0, MOST_PLACES)[:, None] & 1
        written = place < self.tree.first + self.width
        seen = (place < 0)[:, None] | written[:, None] & bits.bool()  # [rows, width, span]
        if sliding_window is not None:
            own = self.tree.depths.gather(1, place.clamp(0, self.width - 1))
            depths = torch.where(place < 0, place, own)  # of each key, from the first place [rows, span]
            seen &= depths[:, None] > self.tree.depths[..., None] - sliding_window
        return seen[:, None]


class KVCache:
    """Keys and values of all layers, in one tensor.

    Speaks the part of transformers' cache protocol that decoder layers use
    (`update`), writing through the window bound for the current pass.

    Attributes:
        keys, values: views per layer, [slots, kv_heads, positions, head_dim] each.
    """

    __slots__ = ("_storage", "_window", "keys", "values")

    def __init__(
        self,
        *,
        layers: int,
        kv_heads: int,
        head_dim: int,
        slots: int,
        positions: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        shape = (2, layers, slots, kv_heads, positions, head_dim)
        self._storage = torch.zeros(shape, dtype=dtype, device=device)
        self.keys: tuple[Tensor, ...] = self._storage[0].unbind()
        self.values: tuple[Tensor, ...] = self._storage[1].unbind()
        self._window: Window | None = None

    @property
    def slots(self) -> int:
        return self._storage.shape[2]

    @property
    def positions(self) -> int:
        return self._storage.shape[4]

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
        self._storage[:, :, target, :, :length] = self._storage[:, :, source, :, :length]

    def take(self, other: KVCache, slot: int, length: int) -> None:
        """Copies the first `length` positions of another cache's first slot to the beginning of this slot."""
        self._storage[:, :, slot, :, :length] = other._storage[:, :, 0, :, :length]

    def adopt(self, other: KVCache, slots: Tensor) -> None:
        """Copies all of another cache's positions to the beginning of these slots [other's slots]."""
        self._storage[:, :, :, :, : other.positions].index_copy_(2, slots, other._storage)

    def keep_path(self, starts: Tensor, places: Tensor) -> None:
        """Makes a tree's path contiguous, in the first slots.

        Args:
            starts: where the trees were written [rows].
            places: places of the path, root first [rows, depth]; place j goes to starts + j.
        """
        rows = torch.arange(starts.shape[0], device=starts.device)[:, None]
        target = torch.arange(places.shape[1], device=starts.device)
        # Index tensors around a slice put the indexed axes first: [rows, depth, 2, layers, heads, dim].
        path = self._storage[:, :, rows, :, starts[:, None] + places]
        self._storage[:, :, rows, :, starts[:, None] + target] = path


def _write_and_view(buffer: Tensor, fresh: Tensor, window: Window) -> Tensor:
    slots = buffer[window.first_slot : window.first_slot + window.rows]
    if window.single_start is not None:
        slots[:, :, window.single_start : window.single_start + window.width] = fresh
    else:
        rows = torch.arange(window.rows, device=buffer.device)[:, None]
        # Two index tensors around a slice put the indexed axes first: [rows, width, kv_heads, head_dim].
        slots[rows, :, window.cells()] = fresh.transpose(1, 2)
    return slots[:, :, : window.span]
