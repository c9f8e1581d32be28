"""The active rows: a fixed buffer of LM head rows, changed in place between cycles."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from evospec.models.tables import TokenTables
from evospec.vocab.head_rows import HeadRows, HeadView
from evospec.vocab.proposals import Origin, Proposals, Ranking
from evospec.vocab.row_update import RowUpdate

_INACTIVE = -1
_LEAST = 1e-300  # score that one of 0 counts as
_NONE = np.zeros(0, dtype=np.int64)


@dataclass(frozen=True, slots=True)
class ActiveSlot:
    """One active token.

    Attributes:
        score: as of now.
        origin: the source that gave it.
        pins: how often it is held; above 0 it stays.
    """

    token_id: int
    score: float
    origin: Origin
    pins: int


class ActiveRows:
    """Up to `capacity` rows of the head of `tables`, dense in slots [0, count).

    A slot has a token id, a score that halves every `half_life` ticks without use,
    and a pin count. A full buffer evicts the lowest scores first, pinned slots never.
    Tokens without a head row are never active. Changes are collected on the host until `write`
    brings them to the device. Not thread-safe: used by the engine's thread alone.

    Args:
        padded: see `HeadRows`.

    Attributes:
        epoch: grows by one at each `activate` that changed a row.
        refused: tokens not activated because every other slot was pinned.
    """

    def __init__(
        self, tables: TokenTables, capacity: int, half_life: int, *, padded: bool | None = None
    ) -> None:
        head = tables.head
        self.capacity = min(capacity, head.shape[0])
        self.count = 0
        self._limit = self.capacity
        self.epoch = 0
        self.refused = 0
        self.vocab_size = tables.vocab_size
        index = tables.head_index()
        self._head_row = None if index is None else index.cpu().numpy()
        self._half_life = half_life
        self._tick = 0
        self._device = HeadRows(tables, self.capacity, padded=padded)
        self._changed: list[np.ndarray] = []  # slots
        self._written = np.full(self.capacity, _INACTIVE, dtype=np.int64)  # ids on the device
        self._ids = np.full(self.capacity, _INACTIVE, dtype=np.int64)
        self._slot_of = np.full(tables.vocab_size, _INACTIVE, dtype=np.int32)
        # log2(score) + tick / half_life of each slot: scores decay, but this stands.
        self._ranks = np.full(self.capacity, -np.inf, dtype=np.float64)
        self._pins = np.zeros(self.capacity, dtype=np.int32)
        self._origins = np.zeros(self.capacity, dtype=np.int8)

    def view(self) -> HeadView:
        """Rows and ids as of the last `write`; later ones go into the same memory."""
        return self._device.view()

    def write(self) -> np.ndarray:
        """Brings all changes to the device, behind what it was asked to do before.

        Returns:
            Tokens that have no row any more, int64 [n].
        """
        if not self._changed:
            return _NONE
        # Distinct ones, rising; at a few hundred of them sorting would take longer.
        changed = np.zeros(self.capacity, dtype=bool)
        for slots in self._changed:
            changed[slots] = True
        slots = np.flatnonzero(changed)
        self._changed.clear()
        ids, before = self._ids[slots], self._written[slots]
        dropped = before[before != _INACTIVE]
        dropped = dropped[self._slot_of[dropped] == _INACTIVE]
        self._written[slots] = ids
        held = ids != _INACTIVE
        slots, ids = slots[held], ids[held]
        sources = ids if self._head_row is None else self._head_row[ids]
        self._device.write(RowUpdate(slots, ids, sources, dropped, self.count))
        return dropped

    def tick(self) -> None:
        """Advances the clock that scores decay by: once per cycle."""
        self._tick += 1

    def contains(self, token_ids: np.ndarray) -> np.ndarray:
        """Whether each id is active, bool, same shape."""
        return self._slot_of[token_ids] != _INACTIVE

    def activate(
        self, token_ids: np.ndarray, scores: np.ndarray | float, origin: Origin = Origin.CORE
    ) -> int:
        """Raises the scores of active ids [n] and brings in the others, best first.

        Returns:
            Number of rows written.
        """
        return self.propose({origin: Proposals.of(token_ids, scores)})

    def propose(self, proposals: Mapping[Origin, Proposals]) -> int:
        """The same for what sources want; each row remembers which one wanted it most, of several the
        first. A token may come more than once."""
        wanted = Ranking.of(proposals)
        if self._head_row is not None:
            wanted = wanted.at(np.flatnonzero(self._head_row[wanted.token_ids] != _INACTIVE))
        slots = self._slot_of[wanted.token_ids]
        here = np.flatnonzero(slots != _INACTIVE)
        self._refresh(slots[here], wanted.at(here))
        if len(here) == len(wanted):
            return 0
        return self._insert(wanted.at(np.flatnonzero(slots == _INACTIVE)).best())

    def deactivate(self, token_ids: np.ndarray) -> None:
        """Takes tokens out, distinct ids [n]; those that are pinned, or not active, stay as they are."""
        slots = self._slot_of[token_ids]
        slots = slots[slots != _INACTIVE]
        slots = slots[self._pins[slots] == 0]
        if not len(slots):
            return
        self._slot_of[self._ids[slots]] = _INACTIVE
        self._ids[slots] = _INACTIVE
        before, self.count = self.count, self.count - len(slots)
        # The last slots move into the gaps, so that slots stay dense.
        gaps = np.sort(slots[slots < self.count])
        last = np.arange(self.count, before)
        movers = last[self._ids[last] != _INACTIVE]
        for values in (self._ids, self._ranks, self._pins, self._origins):
            values[gaps] = values[movers]
        self._slot_of[self._ids[gaps]] = gaps
        self._ids[last] = _INACTIVE
        self._pins[last] = 0
        self._changed += [gaps, last]
        self.epoch += 1

    def slots(self) -> list[ActiveSlot]:
        """What is active and why, in order of slots."""
        used = slice(self.count)
        scores = np.exp2(self._ranks[used] - self._tick / self._half_life)
        return [
            ActiveSlot(int(token), float(score), Origin(origin), int(pins))
            for token, score, origin, pins in zip(
                self._ids[used], scores, self._origins[used], self._pins[used], strict=True
            )
        ]

    def sources(self) -> dict[str, int]:
        """How many rows each source gave."""
        counts = np.bincount(self._origins[: self.count], minlength=len(Origin)).tolist()
        return {origin.name.lower(): counts[origin] for origin in Origin if counts[origin]}

    def pin(self, token_ids: np.ndarray) -> None:
        """Adds one pin per id; every id must be active. An id may come more than once."""
        np.add.at(self._pins, self._slots(token_ids), 1)

    def unpin(self, token_ids: np.ndarray) -> None:
        """Takes one pin back per id. An id may come more than once."""
        slots = self._slots(token_ids)
        np.subtract.at(self._pins, slots, 1)
        if (self._pins[slots] < 0).any():
            np.add.at(self._pins, slots, 1)
            raise ValueError("unpin without a pin")

    def rescore(self, token_ids: np.ndarray, score: float) -> None:
        """Gives active tokens another score, higher or lower."""
        self._ranks[self._slots(token_ids)] = self._ranked(np.asarray(score))

    def limit(self, rows: int) -> None:
        """Holds at most so many rows from now on, and takes out the lowest scores above that."""
        self._limit = min(rows, self.capacity)
        self.deactivate(self.lowest(self.count - self._limit))

    def lowest(self, rows: int) -> np.ndarray:
        """Tokens that would be taken out next, lowest scores first [rows, or fewer: pinned ones stay]."""
        slots = np.flatnonzero(self._pins[: self.count] == 0)
        order = np.argsort(self._ranks[slots], kind="stable")[: max(0, rows)]
        tokens: np.ndarray = self._ids[slots[order]]
        return tokens

    def _slots(self, token_ids: np.ndarray) -> np.ndarray:
        slots = self._slot_of[token_ids]
        if (slots == _INACTIVE).any():
            raise ValueError("token is not active")
        return slots

    def _refresh(self, slots: np.ndarray, wanted: Ranking) -> None:
        fresh = self._ranked(wanted.scores)
        np.maximum.at(self._ranks, slots, fresh)
        most = np.flatnonzero(fresh == self._ranks[slots])[::-1]  # the first one is written last, and stays
        self._origins[slots[most]] = wanted.origins[most]

    def _ranked(self, scores: np.ndarray) -> np.ndarray:
        """What `_ranks` is of these scores at this tick."""
        ranks: np.ndarray = np.log2(np.maximum(scores, _LEAST)) + self._tick / self._half_life
        return ranks

    def _insert(self, wanted: Ranking) -> int:
        """Brings in distinct tokens, best first."""
        ids, scores, origins = wanted.token_ids, wanted.scores, wanted.origins
        free = max(0, min(self._limit - self.count, len(ids)))
        slots = np.arange(self.count, self.count + free)
        if len(ids) > free:
            slots = np.concatenate((slots, self._victims(scores[free:])))
        self.refused += len(ids) - len(slots)
        ids, scores, origins = ids[: len(slots)], scores[: len(slots)], origins[: len(slots)]
        if not len(ids):
            return 0
        self.count += free
        old = self._ids[slots]
        self._slot_of[old[old != _INACTIVE]] = _INACTIVE
        self._slot_of[ids] = slots
        self._ids[slots] = ids
        self._ranks[slots] = self._ranked(scores)
        self._origins[slots] = origins
        self._changed.append(slots)
        self.epoch += 1
        return len(ids)

    def _victims(self, scores: np.ndarray) -> np.ndarray:
        """Slots to evict for newcomers with these falling scores: each must beat the one it replaces."""
        slots = np.flatnonzero(self._pins[: self.count] == 0)
        ranks = self._ranks[slots]
        wanted = min(len(scores), len(slots))
        if wanted < len(slots):  # the others need no order
            lowest = np.sort(np.argpartition(ranks, wanted)[:wanted])
            slots, ranks = slots[lowest], ranks[lowest]
        order = np.argsort(ranks, kind="stable")
        worse = ranks[order] < self._ranked(scores[:wanted])
        # Victims rise and newcomers fall, so the exchanges that pay form a prefix.
        return slots[order][: int(worse.sum())]
