"""How products of a few tokens are cut up among programs."""

from __future__ import annotations

from dataclasses import dataclass

import triton

MOST_TOKENS = 16  # the other side of a tensor core's tile
LEAST_BYTES = 92 << 10  # of shared memory for a program's steps: any device since Ampere has them
LINE_BYTES = 128  # of the cache
_AT_ONCE = 640  # programs that a large device runs at once
_HELD_BYTES = 256  # of weights in a thread's registers


@dataclass(frozen=True, slots=True)
class Tiling:
    """How one product is cut up.

    Attributes:
        rows: of the weight, a program's.
        parts: among which each step's inputs are split, one a warp.
        part: inputs of a part.
        steps: in which all inputs are taken.
        held: first steps whose weights a program reads into registers before its inputs are there.
        steps_ahead: how many of the others' weights are on the way while one is multiplied.
    """

    rows: int
    parts: int
    part: int
    steps: int
    held: int
    steps_ahead: int

    def lines(self, inputs: int, itemsize: int) -> int:
        """Cache lines of a weight's row that are not held, rounded up to a power of two."""
        rest = inputs - self.held * self.parts * self.part
        return int(triton.next_power_of_2(triton.cdiv(rest * itemsize, LINE_BYTES))) if rest > 0 else 0


def tiling(
    outputs: int,
    inputs: int,
    *,
    tokens: int,
    itemsize: int,
    shared: int,
    weights: int = 1,
    states: int = 1,
) -> Tiling:
    """A tiling that spreads over the device and keeps as many weights on the way as fit.

    Of small matrices a program holds all its weights, of larger ones half of them while all programs find
    room on the device at once, and of the largest none; what it does not hold it streams.
    How sums are ordered depends on the matrix alone, not on `tokens`.

    Args:
        shared: bytes that a program has for its steps, see `step_bytes`.
        weights, states: tensors of these shapes that a program reads side by side.
    """
    rows = 8 if outputs * weights <= 8 * _AT_ONCE else 16
    parts, line = 4 if inputs <= 1024 else 8, LINE_BYTES // itemsize
    largest = LEAST_BYTES // ((weights * rows + states * MOST_TOKENS) * parts * itemsize)
    wider = [line * times for times in (2, 4) if rows == 8 and line * times <= largest]
    part = min((line, *wider), key=lambda part: (triton.cdiv(inputs, parts * part) * part, -part))
    steps = triton.cdiv(inputs, parts * part)
    of_step = weights * rows * part * itemsize // 32  # bytes that a thread holds
    held = steps if rows == 8 else steps // 2
    if outputs * weights > 16 * _AT_ONCE or held * of_step > _HELD_BYTES:
        held = 0
    step_bytes = (weights * rows + states * triton.next_power_of_2(tokens)) * parts * part * itemsize
    room = shared if rows == 8 else LEAST_BYTES  # of those with more rows, several share a processor
    return Tiling(rows, parts, part, steps, held, max(1, min(steps - held, room // step_bytes)))
