"""Adapters: what a version changes of a drafter, as it is trained and published."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from evospec.errors import WireError
from evospec.models.bank import Bank
from evospec.models.deltas import Deltas
from evospec.models.drafter import Drafter
from evospec.vocab.successor_table import SuccessorTables
from evospec.vocab.successors_codec import take_tables, to_tensors

CORE = "vocabulary.core"
# Headers may name dtypes that torch lacks and shapes beyond its integers or strides.
_UNREADABLE = (SafetensorError, ArithmeticError, LookupError, RuntimeError, TypeError, ValueError)


@dataclass(frozen=True, slots=True)
class AdapterWeights:
    """What one version changes: the drafter's weights, which tokens are the core, and what is known of
    successors.

    Attributes:
        tensors: deltas for requests of no kind with an adapter of its own, see `Deltas`.
        core_ranks: token ids by falling frequency in the cluster's traffic, distinct, int32 [ranks]; None
            leaves the drafter's own.
        successors: tables of the cluster's statistical index by `tenant_key`.
        bank: deltas for kinds of traffic; None: one adapter for all requests.
    """

    version: int
    tensors: dict[str, Tensor]
    core_ranks: Tensor | None = None
    successors: SuccessorTables = field(default_factory=dict)
    bank: Bank | None = None

    @property
    def general(self) -> Deltas:
        """What requests of no kind draft with."""
        return Deltas(self.tensors)

    @property
    def contents(self) -> dict[str, Tensor]:
        """All tensors of the version by name, as they are published."""
        core = {} if self.core_ranks is None else {CORE: self.core_ranks}
        bank = {} if self.bank is None else self.bank.contents
        return {**self.tensors, **core, **to_tensors(self.successors), **bank}

    def to_bytes(self) -> bytes:
        return bytes(save({name: tensor.contiguous() for name, tensor in self.contents.items()}))

    @classmethod
    def from_bytes(cls, blob: bytes, version: int, drafter: Drafter) -> AdapterWeights:
        """Raises WireError: not safetensors, unknown names, other shapes or dtypes, non-finite values, ids
        outside the vocabulary."""
        where = f"adapter version {version}"
        try:
            tensors = load(blob)
        except _UNREADABLE as error:
            first_line = str(error).partition("\n")[0]  # PyTorch's own may come with its C++ stack
            raise WireError(f"{where} is not valid safetensors: {first_line}") from None
        core_ranks = tensors.pop(CORE, None)
        if core_ranks is not None:
            _check_core(core_ranks, version, drafter.config.vocab_size)
        try:
            successors = take_tables(tensors, drafter.config.vocab_size)
        except WireError as error:
            raise WireError(f"{where}: {error}") from None
        bank = Bank.take(tensors, where)
        adapter = cls(version, Deltas.read(tensors, where).tensors, core_ranks, successors, bank)
        adapter.check(drafter)
        return adapter

    def check(self, drafter: Drafter) -> None:
        """Raises WireError unless every tensor fits `drafter` and is finite."""
        for where, deltas in self._parts():
            deltas.check(drafter, where)
        if self.bank is not None:
            self.bank.check(drafter, f"adapter version {self.version}")

    def check_norms(self, limits: Mapping[str, float]) -> None:
        """Raises WireError when a delta is too large to be an adaptation of its layer; see `Deltas`."""
        for where, deltas in self._parts():
            deltas.check_norms(limits, where)

    def scaled(self, share: float) -> AdapterWeights:
        """The same version with all deltas so much of what they are."""
        bank = None if self.bank is None else self.bank.scaled(share)
        return replace(self, tensors=self.general.scaled(share).tensors, bank=bank)

    def _parts(self) -> Iterator[tuple[str, Deltas]]:
        """All sets of deltas, and where they are."""
        where = f"adapter version {self.version}"
        yield where, self.general
        for kind, deltas in enumerate(() if self.bank is None else self.bank.adapters):
            yield f"{where}, kind {kind}", deltas


def _check_core(ranks: Tensor, version: int, vocab_size: int) -> None:
    """Raises WireError unless `ranks` are distinct token ids."""
    fits = ranks.dtype is torch.int32 and ranks.dim() == 1 and 0 < len(ranks) <= vocab_size
    if not fits or int(ranks.min()) < 0 or int(ranks.max()) >= vocab_size:
        raise WireError(
            f"adapter version {version}: {CORE!r} is {ranks.dtype} of shape {tuple(ranks.shape[:4])}, "
            f"not up to {vocab_size} token ids below that"
        )
    if len(ranks.unique()) != len(ranks):
        raise WireError(f"adapter version {version}: a token comes twice in {CORE!r}")
