"""What decoder layers are made of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu as gelu_of
from torch.nn.functional import silu

from evospec.models.attention import grouped_attention
from evospec.models.kv_cache import KVCache, Window
from evospec.models.projection import Projection


@dataclass(frozen=True, slots=True)
class Norm:
    """Root-mean-square norm (Zhang & Sennrich, 1910.07467), rounded where the family rounds.

    Llama scales after rounding to the model's type; Gemma, before, by 1 + weight.
    """

    weight: Tensor
    eps: float
    scales_wide: bool

    @classmethod
    def of(cls, module: nn.Module) -> Norm:
        weight = module.get_parameter("weight").detach()
        if type(module).__name__.startswith("Gemma"):
            return cls(1.0 + weight.float(), float(str(module.eps)), scales_wide=True)
        return cls(weight, float(str(module.variance_epsilon)), scales_wide=False)

    def __call__(self, states: Tensor) -> Tensor:
        wide = states.float()
        wide = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + self.eps)
        if self.scales_wide:
            return (wide * self.weight).to(states.dtype)
        return self.weight * wide.to(states.dtype)


@dataclass(frozen=True, slots=True)
class HeadNorms:
    """Norms of each query and key head (Qwen3, Gemma 3), over head_dim."""

    query: Norm
    key: Norm


@dataclass(frozen=True, slots=True)
class HeadShape:
    """Attention of one kind of layer; `sliding_window` None sees the whole context."""

    heads: int
    kv_heads: int
    head_dim: int
    scale: float
    sliding_window: int | None


@dataclass(frozen=True, slots=True)
class AttentionPlan:
    """What all layers of one kind share in one pass.

    Attributes:
        rotary: cosines and signed sines [2, positions, head_dim]; or, gathered for the pass's
            own positions, [2, rows, 1, width, head_dim].
        mask: bool [rows, 1, width, span]; None when the kernel makes its own.
    """

    window: Window
    shape: HeadShape
    rotary: Tensor
    mask: Tensor | None


class LayerOps(Protocol):
    """A layer in five steps.

    The residual stream is `hidden` and a `change` that is still to be added to it, if it is not
    None: implementations add it where that costs least.
    """

    def fuses(self, states: Tensor) -> bool:
        """Whether so few tokens [..., hidden] go through fused kernels."""
        ...

    def plan(self, window: Window, shape: HeadShape, table: Tensor) -> AttentionPlan:
        """Args: table: cosines and signed sines [2, positions, head_dim]."""
        ...

    def add_norm(self, hidden: Tensor, change: Tensor | None, norm: Norm) -> tuple[Tensor, Tensor]:
        """hidden + change, and its norm, [..., hidden] each."""
        ...

    def project(self, states: Tensor, projection: Projection) -> Tensor:
        """[..., inputs] to [..., outputs]."""
        ...

    def norm_project(
        self, hidden: Tensor, change: Tensor | None, norm: Norm, projection: Projection
    ) -> tuple[Tensor, Tensor]:
        """hidden + change [..., hidden], and the projection of its norm [..., outputs]."""
        ...

    def norm_project_pair(
        self, first: Tensor, second: Tensor, norms: tuple[Norm, Norm], projection: Projection
    ) -> Tensor:
        """The projection of two tensors' norms, concatenated: [..., inputs] each to [..., outputs]."""
        ...

    def attend(
        self, qkv: Tensor, plan: AttentionPlan, norms: HeadNorms | None, cache: KVCache, layer: int
    ) -> Tensor:
        """Rotates, writes keys and values, and attends.

        Args:
            qkv: [rows, width, (heads + 2 * kv_heads) * head_dim].

        Returns:
            [rows, width, heads * head_dim].
        """
        ...

    def norm_gate(
        self, hidden: Tensor, change: Tensor | None, norm: Norm, gate_up: Projection, *, gelu: bool
    ) -> tuple[Tensor, Tensor]:
        """hidden + change [..., hidden], and act(gate) * up of its norm [..., columns].

        Args:
            gate_up: the gate's rows [columns, hidden], then those that they multiply.
            gelu: GELU's tanh form rather than SiLU.
        """
        ...

    def extend(
        self, hidden: Tensor, states: Tensor, projection: Projection, norm: Norm | None
    ) -> tuple[Tensor, Tensor | None]:
        """The residual stream and its change, which is the projection of `states`, normed where asked."""
        ...


class TorchOps:
    """Plain PyTorch, to the bit what transformers computes."""

    def fuses(self, states: Tensor) -> bool:
        return False

    def plan(self, window: Window, shape: HeadShape, table: Tensor) -> AttentionPlan:
        rotary = table[:, window.positions()][:, :, None]
        return AttentionPlan(window, shape, rotary, window.mask(shape.sliding_window))

    def add_norm(self, hidden: Tensor, change: Tensor | None, norm: Norm) -> tuple[Tensor, Tensor]:
        hidden = hidden if change is None else hidden + change
        return hidden, norm(hidden)

    def project(self, states: Tensor, projection: Projection) -> Tensor:
        return projection(states)

    def norm_project(
        self, hidden: Tensor, change: Tensor | None, norm: Norm, projection: Projection
    ) -> tuple[Tensor, Tensor]:
        hidden, normed = self.add_norm(hidden, change, norm)
        return hidden, projection(normed)

    def norm_project_pair(
        self, first: Tensor, second: Tensor, norms: tuple[Norm, Norm], projection: Projection
    ) -> Tensor:
        return projection(torch.cat((norms[0](first), norms[1](second)), dim=-1))

    def attend(
        self, qkv: Tensor, plan: AttentionPlan, norms: HeadNorms | None, cache: KVCache, layer: int
    ) -> Tensor:
        shape = plan.shape
        heads = qkv.unflatten(-1, (-1, shape.head_dim)).transpose(1, 2)  # [rows, heads, width, head_dim]
        query, key, value = heads.split((shape.heads, shape.kv_heads, shape.kv_heads), dim=1)
        if norms is not None:
            query, key = norms.query(query), norms.key(key)
        keys, values = cache.update(_rotate(key, plan.rotary), value, layer)
        if plan.mask is None:
            raise ValueError("a plan of other ops")
        attended = grouped_attention(_rotate(query, plan.rotary), keys, values, plan.mask, shape.scale)
        return attended.transpose(1, 2).flatten(-2)

    def norm_gate(
        self, hidden: Tensor, change: Tensor | None, norm: Norm, gate_up: Projection, *, gelu: bool
    ) -> tuple[Tensor, Tensor]:
        hidden, both = self.norm_project(hidden, change, norm, gate_up)
        gate, up = both.chunk(2, dim=-1)
        return hidden, (gelu_of(gate, approximate="tanh") if gelu else silu(gate)) * up

    def extend(
        self, hidden: Tensor, states: Tensor, projection: Projection, norm: Norm | None
    ) -> tuple[Tensor, Tensor | None]:
        change = projection(states)
        return hidden, change if norm is None else norm(change)


def _rotate(states: Tensor, rotary: Tensor) -> Tensor:
    """Rotary embedding (Su et al., 2104.09864), half-split layout, of [rows, heads, width, head_dim]."""
    cos, signed_sin = rotary
    turned = states * cos + states.roll(states.shape[-1] // 2, dims=-1) * signed_sin
    return turned.to(states.dtype)


def layer_ops(device: torch.device, head_dim: int) -> LayerOps:
    """Fused kernels on CUDA devices, for the head sizes they know; plain PyTorch elsewhere."""
    if device.type != "cuda" or head_dim & (head_dim - 1) or head_dim < 16:
        return TorchOps()
    # Triton comes with PyTorch's CUDA builds only.
    from evospec.models.kernel_ops import KernelOps

    return KernelOps()


def merge_parameters(modules: Sequence[nn.Module], name: str) -> Tensor:
    """The modules' parameters of this name in one tensor, by rows, of which they become views."""
    merged = torch.cat([module.get_parameter(name).detach() for module in modules])
    first = 0
    for module in modules:
        parameter = module.get_parameter(name)
        parameter.data = merged[first : first + parameter.shape[0]]
        first += parameter.shape[0]
    return merged
