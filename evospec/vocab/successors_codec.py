"""Successor tables as tensors of a published version, checked before use.

Each tenant has four tensors, `vocabulary.successors.KEY.FIELD`: the arrays of a `SuccessorTable` as they
are. What a blob makes a reader allocate is therefore no more than its own length, which is capped where
it is fetched.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final

import numpy as np
import torch
from torch import Tensor

from evospec.errors import WireError
from evospec.vocab.successor_table import ABSENT, SuccessorTable, SuccessorTables
from evospec.vocab.tenants import KEY_DIGITS

SUCCESSORS: Final = "vocabulary.successors."
WIDEST = 1024  # as far as the setting `successors` goes

_NAME = re.compile(rf"{re.escape(SUCCESSORS)}([0-9a-f]{{{KEY_DIGITS}}})\.(heads|totals|successors|counts)")
_FIELDS: Mapping[str, torch.dtype] = {
    "heads": torch.int32,
    "totals": torch.float32,
    "successors": torch.int32,
    "counts": torch.float32,
}


def to_tensors(tables: SuccessorTables) -> dict[str, Tensor]:
    """The arrays of all tables by name, as views."""
    return {
        f"{SUCCESSORS}{key}.{field}": torch.from_numpy(array)
        for key, table in tables.items()
        for field, array in _arrays(table).items()
    }


def take_tables(tensors: dict[str, Tensor], vocab_size: int) -> dict[str, SuccessorTable]:
    """Takes the tensors that make up tables out of those of a version, and reads them.

    Raises:
        WireError: they are not tables of counts by tenant.
    """
    parts: dict[str, dict[str, np.ndarray]] = {}
    for name in [name for name in tensors if name.startswith(SUCCESSORS)]:
        match = _NAME.fullmatch(name)
        if match is None:
            raise WireError(f"{name[:120]!r} is no part of a tenant's successor table")
        key, field = match.groups()
        tensor = tensors.pop(name)
        if tensor.dtype is not _FIELDS[field]:
            raise WireError(f"{name} is {tensor.dtype}, expected {_FIELDS[field]}")
        parts.setdefault(key, {})[field] = tensor.numpy()
    return {key: _table(f"{SUCCESSORS}{key}", arrays, vocab_size) for key, arrays in parts.items()}


def _table(name: str, arrays: Mapping[str, np.ndarray], vocab_size: int) -> SuccessorTable:
    if arrays.keys() != _FIELDS.keys():
        missing = ", ".join(sorted(_FIELDS.keys() - arrays.keys()))
        raise WireError(f"{name} lacks {missing}")
    table = SuccessorTable(**arrays)
    heads, width = len(table.heads.ravel()), table.successors.shape[-1] if table.successors.ndim else 0
    if not 1 <= heads <= vocab_size or not 1 <= width <= WIDEST:
        raise WireError(
            f"{name} has {heads} heads with {width} successors, up to {vocab_size} with {WIDEST} are taken"
        )
    shapes = {"heads": (heads,), "totals": (heads,), "successors": (heads, width), "counts": (heads, width)}
    for field, shape in shapes.items():
        if arrays[field].shape != shape:
            raise WireError(f"{name}.{field} has shape {arrays[field].shape[:4]}, expected {shape}")
    _check_ids(name, table, vocab_size)
    _check_counts(name, table)
    return table


def _check_ids(name: str, table: SuccessorTable, vocab_size: int) -> None:
    heads, successors = table.heads, table.successors
    if heads.min() < 0 or heads.max() >= vocab_size:
        raise WireError(f"{name}: heads outside the vocabulary of {vocab_size}")
    if successors.min() < ABSENT or successors.max() >= vocab_size:
        raise WireError(f"{name}: successors outside the vocabulary of {vocab_size}")
    if (heads[1:] <= heads[:-1]).any():
        raise WireError(f"{name}: heads do not rise")
    ordered = np.sort(successors, axis=1)
    if ((ordered[:, 1:] == ordered[:, :-1]) & (ordered[:, 1:] != ABSENT)).any():
        raise WireError(f"{name}: a successor of one head comes twice")


def _check_counts(name: str, table: SuccessorTable) -> None:
    for field, numbers in (("totals", table.totals), ("counts", table.counts)):
        if not np.isfinite(numbers).all() or numbers.min() < 0:
            raise WireError(f"{name}: {field} hold a number that is negative or not finite")
    if ((table.counts > 0) != (table.successors != ABSENT)).any():
        raise WireError(f"{name}: counts and successors are not in the same places")
    if not table.totals.all():
        raise WireError(f"{name}: a head was never seen")
    with np.errstate(over="ignore"):
        shares = table.counts.max(axis=1) / table.totals
    if not np.isfinite(shares).all():
        raise WireError(f"{name}: a count is beyond all measure of its head's total")


def _arrays(table: SuccessorTable) -> dict[str, np.ndarray]:
    return {
        "heads": table.heads,
        "totals": table.totals,
        "successors": table.successors,
        "counts": table.counts,
    }
