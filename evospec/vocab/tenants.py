"""Statistical indexes of several tenants: strictly apart, and no more than memory is set aside for."""

from __future__ import annotations

import hashlib
from collections import OrderedDict

import numpy as np

from evospec.vocab.successor_table import SuccessorTable, SuccessorTables
from evospec.vocab.successors import SuccessorIndex, SuccessorLimits

KEY_DIGITS = 32


def tenant_key(tenant: str) -> str:
    """What stands for a tenant in traces and versions: the first half of its SHA-256, in hex digits.

    Long enough that no two tenants share one. It keeps names of any length and content out of what
    travels; it does not hide a name that can be guessed.
    """
    return hashlib.sha256(tenant.encode(errors="surrogatepass")).hexdigest()[:KEY_DIGITS]


class TenantIndexes:
    """An index for each tenant, by its key; the tenant that was heard of least recently leaves when there
    are too many.

    Args:
        common: see `SuccessorIndex`.
        most: tenants kept.
    """

    def __init__(self, vocab_size: int, common: np.ndarray, limits: SuccessorLimits, most: int) -> None:
        self._vocab_size = vocab_size
        self._common = common
        self._limits = limits
        self._most = most
        self._indexes: OrderedDict[str, SuccessorIndex] = OrderedDict()

    def __len__(self) -> int:
        return len(self._indexes)

    def find(self, key: str) -> SuccessorIndex | None:
        """The tenant's index, if there is one; looking is not hearing of a tenant."""
        return self._indexes.get(key)

    def of(self, key: str) -> SuccessorIndex:
        """The tenant's index, to learn: a new one when there is none."""
        index = self._indexes.pop(key, None)
        if index is None:
            index = SuccessorIndex(self._vocab_size, self._common, self._limits)
            if len(self._indexes) == self._most:
                self._indexes.popitem(last=False)
        self._indexes[key] = index
        return index

    def tables(self, most_bytes: int) -> dict[str, SuccessorTable]:
        """Copies of what they know, in no more than so many bytes, of which each tenant may have an equal
        share; tenants of whom nothing is known are left out."""
        share = most_bytes // max(len(self._indexes), 1)
        tables = {key: index.table().within(share) for key, index in self._indexes.items()}
        return {key: table for key, table in tables.items() if len(table)}

    def begin_with(self, tables: SuccessorTables) -> None:
        """Takes over what an earlier process knew, of tenants that were not heard of here: what was counted
        here already is in those tables as well. Nobody leaves for it."""
        for key, table in tables.items():
            if key not in self._indexes and len(self._indexes) < self._most:
                self.of(key).merge(table)
