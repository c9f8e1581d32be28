"""Where an adapter comes into force: merged into a drafter's weights, in place."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from threading import Lock

import torch
from torch import Tensor

from evospec.models.adapter import AdapterWeights
from evospec.models.bank_places import BankPlaces, check_room
from evospec.models.deltas import adapted_parameters, delta_limits, merged
from evospec.models.drafter import Drafter
from evospec.vocab.successor_table import SuccessorTables


@dataclass(frozen=True, slots=True)
class StagedAdapter:
    """An adapter that was checked and is ready to be written.

    Attributes:
        weights: base + delta of every linear layer and norm by parameter, on the drafter's device, in its
            dtype; where there is room for a bank, of all variants, and its routes.
        core_ranks, successors: see `AdapterWeights`.
        sent: when the weights are there; None where nothing has to be sent.
    """

    version: int
    weights: dict[str, Tensor]
    core_ranks: Tensor | None = None
    successors: SuccessorTables = field(default_factory=dict)
    sent: torch.cuda.Event | None = None


class AdapterSlot:
    """Merges adapters into a drafter's weights in place; version 0 is the base.

    Merging, not adding at run time, makes an adapted drafter cost exactly what
    the base costs. The base weights are kept, in host memory, so that merges never accumulate.
    So many kinds of traffic as there is room for adapters of cost the memory of so many drafters more: on
    the device, while a version is staged there once more, and in host memory.

    Requests in flight across a swap: the caller swaps between cycles, so that a draft is of one
    version, and the next cycle drafts with the new one, for every request. Drafter keys cached
    before the swap stay: they are guesses made by an older version, and the target verifies
    whatever follows from them. What requests get does not depend on it. Each token of a greedy
    request, and with `sampled_drafts: best` each token of a seeded one, is the same as without the
    swap, whether the version goes up, down or to the base; with `sampled_drafts: drawn` each token
    follows the same distribution. Only the number of tokens a cycle yields changes.

    Args:
        places: room for adapters of kinds of traffic; None: versions that have some are refused.
    """

    __slots__ = ("_base", "_drafter", "_limits", "_places", "_sender", "_targets", "version")

    def __init__(self, drafter: Drafter, places: BankPlaces | None = None) -> None:
        self._drafter, self._places = drafter, places
        parameters = adapted_parameters(drafter)
        self._base = {name: weight.detach().to("cpu", copy=True) for name, weight in parameters.items()}
        self._limits = delta_limits(drafter)
        # Parameters themselves: whoever merges them later moves what they hold.
        self._targets: dict[str, Tensor] = {**parameters, **({} if places is None else places.targets)}
        self._sender = _Sender(self._targets, drafter.device) if drafter.device.type == "cuda" else None
        self.version = 0

    @torch.inference_mode()
    def stage(self, adapter: AdapterWeights) -> StagedAdapter:
        """Checks an adapter, merges it on the CPU and sends the sums to the drafter's device, beside what
        runs there; any thread may call it at any time.

        Raises:
            WireError: it does not fit the drafter, its deltas are absurdly large, or it has adapters for
                more kinds of traffic than there is room for.
        """
        adapter.check(self._drafter)
        adapter.check_norms(self._limits)
        if adapter.bank is not None:
            check_room(adapter.bank, self._places, f"adapter version {adapter.version}")
        weights = merged(self._base, adapter.general)
        if self._places is not None:
            weights |= self._places.contents(self._base, weights, adapter.bank)
        if self._sender is None:
            return StagedAdapter(adapter.version, weights, adapter.core_ranks, adapter.successors)
        return self._sender.send(adapter, weights)

    @torch.inference_mode()
    def swap(self, adapter: StagedAdapter | AdapterWeights | None) -> StagedAdapter:
        """Writes base + delta into the weight buffers, behind what the device was asked to do before; None
        returns to the base. What was written is returned.

        Raises WireError before anything is written when the adapter, not staged yet, does not fit.
        """
        if not isinstance(adapter, StagedAdapter):
            adapter = self.stage(AdapterWeights(0, {}) if adapter is None else adapter)
        if adapter.sent is not None:
            torch.cuda.current_stream().wait_event(adapter.sent)
        staged = list(adapter.weights.values())
        torch._foreach_copy_([self._targets[name] for name in adapter.weights], staged)
        if adapter.sent is not None:
            for weight in staged:
                weight.record_stream(torch.cuda.current_stream())  # freed when the copy is done
        self.version = adapter.version
        return adapter


class _Sender:
    """Sends weights to a CUDA device on a stream of its own, from memory that the device reads by itself."""

    __slots__ = ("_device", "_last", "_lock", "_pinned", "_stream")

    def __init__(self, like: Mapping[str, Tensor], device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device)
        self._pinned = {
            name: torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
            for name, tensor in like.items()
        }
        self._last: torch.cuda.Event | None = None
        self._lock = Lock()

    def send(self, adapter: AdapterWeights, weights: Mapping[str, Tensor]) -> StagedAdapter:
        """Does not wait for the weights to arrive."""
        with self._lock:
            if self._last is not None:
                self._last.synchronize()
            for name, weight in weights.items():
                self._pinned[name].copy_(weight)
            self._last = torch.cuda.Event()
            with torch.cuda.stream(self._stream):
                sent = {name: self._pinned[name].to(self._device, non_blocking=True) for name in weights}
                self._last.record()
            return StagedAdapter(adapter.version, sent, adapter.core_ranks, adapter.successors, self._last)
