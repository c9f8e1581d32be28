"""Adapters: low-rank deltas of the drafter's linear layers, merged into fixed weight buffers."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn

from evospec.errors import WireError
from evospec.models.drafter import Drafter

LORA_A = ".lora_a"
LORA_B = ".lora_b"


def adapted_linears(drafter: Drafter) -> dict[str, nn.Linear]:
    """The linear layers an adapter may change, by name."""
    return {name: module for name, module in drafter.named_modules() if isinstance(module, nn.Linear)}


@dataclass(frozen=True, slots=True)
class AdapterWeights:
    """LoRA matrices of one version (Hu et al., 2106.09685).

    `tensors` holds `<linear>.lora_a` [rank, in] and `<linear>.lora_b` [out, rank],
    float32 on the CPU, with the LoRA scale already folded into `lora_b`: the delta
    is lora_b @ lora_a. Linears that are not named stay at the base.
    """

    version: int
    tensors: dict[str, Tensor]

    def to_bytes(self) -> bytes:
        return bytes(save({name: tensor.contiguous() for name, tensor in self.tensors.items()}))

    @classmethod
    def from_bytes(cls, blob: bytes, version: int, drafter: Drafter) -> AdapterWeights:
        """Raises WireError: not safetensors, unknown names, other shapes, non-finite values."""
        try:
            tensors = load(blob)
        except (SafetensorError, ValueError, KeyError, TypeError) as error:
            raise WireError(f"adapter version {version} is not valid safetensors: {error}") from None
        adapter = cls(version, {name: tensor.float() for name, tensor in tensors.items()})
        adapter.check(drafter)
        return adapter

    def check(self, drafter: Drafter) -> None:
        """Raises WireError unless every tensor fits a linear layer of `drafter` and is finite."""
        linears = adapted_linears(drafter)
        for name, tensor in self.tensors.items():
            owner, suffix = name[: -len(LORA_A)], name[-len(LORA_A) :]
            if owner not in linears or suffix not in (LORA_A, LORA_B):
                raise WireError(f"adapter version {self.version}: the drafter has no place for {name}")
            if not torch.isfinite(tensor).all():
                raise WireError(f"adapter version {self.version}: {name} holds NaN or infinity")
        for name in self.linear_names():
            a, b = self.tensors.get(name + LORA_A), self.tensors.get(name + LORA_B)
            out_size, in_size = linears[name].weight.shape
            if a is None or b is None:
                raise WireError(f"adapter version {self.version}: {name} has only one of its two matrices")
            fits = a.dim() == b.dim() == 2 and a.shape[1] == in_size and b.shape[0] == out_size
            if not fits or a.shape[0] != b.shape[1]:
                raise WireError(
                    f"adapter version {self.version}: {name} has shapes {tuple(a.shape)} and "
                    f"{tuple(b.shape)}, the drafter's layer is {in_size} to {out_size}"
                )

    def linear_names(self) -> list[str]:
        return sorted({name[: -len(LORA_A)] for name in self.tensors})


class AdapterSlot:
    """Merges adapters into a drafter's weights in place; version 0 is the base.

    Merging, not adding at run time, makes an adapted drafter cost exactly what
    the base costs. The base weights are kept so that merges never accumulate.
    Drafter keys cached before a swap stay: they are guesses made by an older
    version, and the target verifies whatever follows from them.
    """

    __slots__ = ("_base", "_drafter", "version")

    def __init__(self, drafter: Drafter) -> None:
        self._drafter = drafter
        self._base = {
            name: linear.weight.detach().clone() for name, linear in adapted_linears(drafter).items()
        }
        self.version = 0

    @torch.inference_mode()
    def swap(self, adapter: AdapterWeights | None) -> None:
        """Writes base + delta into the weight buffers; None returns to the base.

        Raises WireError before anything is written when the adapter does not fit.
        """
        if adapter is not None:
            adapter.check(self._drafter)
        tensors = adapter.tensors if adapter is not None else {}
        for name, linear in adapted_linears(self._drafter).items():
            base = self._base[name]
            a, b = tensors.get(name + LORA_A), tensors.get(name + LORA_B)
            if a is None or b is None:
                linear.weight.copy_(base)
                continue
            delta = b.to(base.device, torch.float32) @ a.to(base.device, torch.float32)
            linear.weight.copy_((base.float() + delta).to(base.dtype))
        self.version = adapter.version if adapter is not None else 0
