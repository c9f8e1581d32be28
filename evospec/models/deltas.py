"""Deltas of a drafter's weights: low-rank ones of linear layers, and whole ones."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from evospec.errors import WireError
from evospec.models.drafter import Drafter, Rows

LORA_A = ".lora_a"
LORA_B = ".lora_b"
DELTA = ".delta"
# Trained deltas are a fraction of the weights they adapt. Whatever is above this many times their
# norm adapts nothing: it is noise, a unit error or an overflow to come.
MAX_DELTA = 100.0
FLOATS = (torch.float32, torch.bfloat16, torch.float16)


def adapted_linears(drafter: Drafter) -> dict[str, nn.Linear]:
    """The linear layers an adapter may change, by name."""
    return {name: module for name, module in drafter.named_modules() if isinstance(module, nn.Linear)}


def adapted_parameters(drafter: Drafter) -> dict[str, nn.Parameter]:
    """The weights of linear layers and norms, which an adapter may change, by name.

    Token tables of a drafter's own are none of them: they are as wide as the vocabulary.
    """
    return {
        f"{owner}.{name}": parameter
        for owner, module in drafter.named_modules()
        if not isinstance(module, Rows)
        for name, parameter in module.named_parameters(recurse=False)
    }


def delta_limits(drafter: Drafter) -> dict[str, float]:
    """Largest Frobenius norm of a delta for each linear layer and norm of a drafter at its base.

    `MAX_DELTA` times the weight's own norm, or times 1 for weights that begin near zero; and no more
    than what keeps the sum of both finite in the weight's dtype.
    """
    limits: dict[str, float] = {}
    for name, weight in adapted_parameters(drafter).items():
        norm = torch.linalg.vector_norm(weight.detach(), dtype=torch.float32).item()
        largest = min(MAX_DELTA * max(norm, 1.0), torch.finfo(weight.dtype).max - norm)
        limits[name.removesuffix(".weight")] = largest
    return limits


@dataclass(frozen=True, slots=True)
class Deltas:
    """One set of changes to a drafter: LoRA matrices (Hu et al., 2106.09685) and whole deltas.

    `tensors` holds `<linear>.lora_a` [rank, in] and `<linear>.lora_b` [out, rank],
    float32 on the CPU, with the LoRA scale already folded into `lora_b`: the delta
    is lora_b @ lora_a. `<parameter>.delta`, as large as that parameter, is one whole, of a norm or of a
    linear layer without LoRA matrices. Weights that are not named stay at the base.

    `where` is what error lines begin with, such as "adapter version 3".
    """

    tensors: dict[str, Tensor]

    @classmethod
    def read(cls, tensors: Mapping[str, Tensor], where: str) -> Deltas:
        """Of tensors that somebody sent, of any floats. Raises WireError: other dtypes or dimensions."""
        for name, tensor in tensors.items():
            dimensions = (1, 2) if name.endswith(DELTA) else (2,)
            if tensor.dtype not in FLOATS or tensor.dim() not in dimensions or not tensor.numel():
                raise WireError(
                    f"{where}: {name[:80]!r} is {tensor.dtype} of shape "
                    f"{tuple(tensor.shape[:4])}, not a matrix of floats"
                )
        return cls({name: tensor.float() for name, tensor in tensors.items()})

    def check(self, drafter: Drafter, where: str) -> None:
        """Raises WireError unless every tensor fits a weight of `drafter` and is finite."""
        linears, parameters = adapted_linears(drafter), adapted_parameters(drafter)
        for name, tensor in self.tensors.items():
            if name.endswith(DELTA):
                fits = name.removesuffix(DELTA) in parameters
            else:
                fits = name.endswith((LORA_A, LORA_B)) and name[: -len(LORA_A)] in linears
            if not fits:
                raise WireError(f"{where}: the drafter has no place for {name[:80]!r}")
            if not torch.isfinite(tensor).all():
                raise WireError(f"{where}: {name} holds NaN or infinity")
        self._check_deltas(parameters, where)
        for name in self.linear_names():
            a, b = self.tensors.get(name + LORA_A), self.tensors.get(name + LORA_B)
            out_size, in_size = linears[name].weight.shape
            if a is None or b is None:
                raise WireError(f"{where}: {name} has only one of its two matrices")
            fits = a.dim() == b.dim() == 2 and a.shape[1] == in_size and b.shape[0] == out_size
            if not fits or a.shape[0] != b.shape[1]:
                raise WireError(
                    f"{where}: {name} has shapes {tuple(a.shape)} and "
                    f"{tuple(b.shape)}, the drafter's layer is {in_size} to {out_size}"
                )

    def check_norms(self, limits: Mapping[str, float], where: str) -> None:
        """Raises WireError when a delta is too large to be an adaptation of its layer.

        What is compared is the sum of the norms of the rank-one terms b_k a_k of lora_b @ lora_a.
        It bounds the delta's Frobenius norm, every entry and, unlike that norm itself, every
        partial sum: terms that cancel each other on paper need not do so in float32.

        Args:
            limits: as `delta_limits` gives them for the drafter's base.
        """
        bounds: dict[str, float] = {}
        for name in self.linear_names():
            a, b = self.tensors[name + LORA_A].double(), self.tensors[name + LORA_B].double()
            bounds[name] = torch.dot(a.norm(dim=1), b.norm(dim=0)).item()
        for name, delta in self.whole_deltas().items():
            bounds[name.removesuffix(".weight")] = delta.double().norm().item()
        for name, bound in bounds.items():
            if not bound <= limits[name]:
                raise WireError(
                    f"{where}: the delta of {name} has norm {bound:.3g}, "
                    f"at most {limits[name]:.3g} is an adaptation"
                )

    def scaled(self, share: float) -> Deltas:
        """So much of what they are."""
        tensors = {
            name: tensor if name.endswith(LORA_A) else tensor * share for name, tensor in self.tensors.items()
        }
        return Deltas(tensors)

    def linear_names(self) -> list[str]:
        """Linear layers with LoRA matrices."""
        return sorted({name[: -len(LORA_A)] for name in self.tensors if not name.endswith(DELTA)})

    def whole_deltas(self) -> dict[str, Tensor]:
        """Deltas that are given whole, by the name of their parameter."""
        return {
            name.removesuffix(DELTA): tensor for name, tensor in self.tensors.items() if name.endswith(DELTA)
        }

    def deltas(self) -> dict[str, Tensor]:
        """What is added to each parameter that changes, by name, float32 on the CPU."""
        low_rank = {
            f"{name}.weight": self.tensors[name + LORA_B] @ self.tensors[name + LORA_A]
            for name in self.linear_names()
        }
        return low_rank | self.whole_deltas()

    def _check_deltas(self, parameters: Mapping[str, Tensor], where: str) -> None:
        for name, delta in self.whole_deltas().items():
            if delta.shape != parameters[name].shape:
                raise WireError(
                    f"{where}: {name}{DELTA} has shape {tuple(delta.shape)}, the "
                    f"drafter's is {tuple(parameters[name].shape)}"
                )
            if name.removesuffix(".weight") + LORA_A in self.tensors:
                raise WireError(f"{where}: {name} has LoRA matrices and a whole delta")


def merged(base: Mapping[str, Tensor], deltas: Deltas) -> dict[str, Tensor]:
    """All of a base's weights by parameter, with deltas added in float32, in the base's dtype; what does not
    change is shared."""
    changes = deltas.deltas()
    return {
        name: (weight.float() + changes[name]).to(weight.dtype) if name in changes else weight
        for name, weight in base.items()
    }
