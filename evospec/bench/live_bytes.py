"""Memory that work takes for itself: by PyTorch's allocator on CUDA, by counting tensors elsewhere."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from evospec.bench.memory import allocated_mb

_MEBIBYTE = 1 << 20
Measure = Literal["allocator", "tensors"]


class LiveBytes(TorchDispatchMode):
    """Counts bytes of the tensors that operations make while it is entered, for as long as they live.

    Saved activations, gradients and optimizer state are among them; what kernels use inside, and
    what existed before, is not.
    """

    def __init__(self) -> None:
        super().__init__()
        self.now = 0
        self.peak = 0
        self._known: set[int] = set()  # addresses of storages: counted ones, and those of others

    def __torch_dispatch__(
        self,
        func: Callable[..., object],
        types: object,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> object:
        named = kwargs or {}
        for tensor in _tensors((args, named)):
            self._note(tensor, made=False)
        made = func(*args, **named)
        for tensor in _tensors(made):
            self._note(tensor, made=True)
        self.peak = max(self.peak, self.now)
        return made

    def _note(self, tensor: Tensor, *, made: bool) -> None:
        if tensor.is_mkldnn:  # weights laid out for decoding, in place of others; they have no storage
            return
        storage = tensor.untyped_storage()
        address, size = storage.data_ptr(), storage.nbytes()
        if not size or address in self._known:
            return
        self._known.add(address)
        self.now += size if made else 0
        weakref.finalize(storage, self._forget, address, size if made else 0).atexit = False

    def _forget(self, address: int, size: int) -> None:
        self._known.discard(address)
        self.now -= size


class ExtraMemory:
    """What is held for good and at most by all that runs inside `watch`, in MiB.

    Attributes:
        peak_mb: the most that was held at once.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._live = LiveBytes()
        self._allocated_mb = 0.0
        self.peak_mb = 0.0

    @property
    def measure(self) -> Measure:
        return "allocator" if self._device.type == "cuda" else "tensors"

    @property
    def held_mb(self) -> float:
        """Held now, between two pieces of work."""
        return self._allocated_mb if self._device.type == "cuda" else self._live.now / _MEBIBYTE

    @contextmanager
    def watch(self) -> Iterator[None]:
        if self._device.type != "cuda":
            self._live.peak = self._live.now
            with self._live:
                yield
            self.peak_mb = max(self.peak_mb, self._live.peak / _MEBIBYTE)
            return
        torch.cuda.synchronize(self._device)
        before = allocated_mb(self._device)
        torch.cuda.reset_peak_memory_stats(self._device)
        yield
        torch.cuda.synchronize(self._device)
        most = torch.cuda.max_memory_allocated(self._device) / _MEBIBYTE - before
        self.peak_mb = max(self.peak_mb, self._allocated_mb + most)
        self._allocated_mb += allocated_mb(self._device) - before


def _tensors(tree: object) -> Iterator[Tensor]:
    return (leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor))
