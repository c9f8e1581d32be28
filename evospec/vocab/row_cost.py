"""What a row of the head takes at a draft step, measured on the device at hand."""

from __future__ import annotations

from statistics import median
from time import perf_counter

import torch
from torch import Tensor

from evospec.models.graphs import Graphs
from evospec.models.tables import TokenTables

_FEW, _MANY = 1024, 4096  # rows that are compared
_REPEATS = 8  # scored in one go: a device is asked once
_ROUNDS = 7


@torch.inference_mode()
def seconds_per_row(tables: TokenTables) -> float:
    """The slope between two numbers of rows: what every step takes anyway is not in it; 0 for heads that are
    too small to tell."""
    if tables.head.shape[0] < _MANY:
        return 0.0
    state = torch.randn(1, tables.head.shape[1], device=tables.head.device).to(tables.head.dtype)
    graphs: Graphs[Tensor] = Graphs(tables.head.device)
    times: dict[int, list[float]] = {_FEW: [], _MANY: []}
    for _ in range(_ROUNDS):
        for rows, taken in times.items():
            taken.append(_seconds(graphs, tables.head[:rows], state))
    return max(0.0, (median(times[_MANY]) - median(times[_FEW])) / (_MANY - _FEW) / _REPEATS)


def _seconds(graphs: Graphs[Tensor], rows: Tensor, state: Tensor) -> float:
    def score() -> Tensor:
        best = [(state @ rows.T).float().argmax(dim=-1) for _ in range(_REPEATS)]
        return torch.stack(best)

    graphs.run(len(rows), score).cpu()  # captured, and everything before it done
    began = perf_counter()
    graphs.run(len(rows), score).cpu()
    return perf_counter() - began
