"""Adapters: deltas of a drafter's weights, mostly low-rank, merged into fixed weight buffers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from threading import Lock

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn

from evospec.errors import WireError
from evospec.models.drafter import Drafter, Rows
from evospec.vocab.successor_table import SuccessorTables
from evospec.vocab.successors_codec import take_tables, to_tensors

LORA_A = ".lora_a"
LORA_B = ".lora_b"
DELTA = ".delta"
CORE = "vocabulary.core"
# Trained deltas are a fraction of the weights they adapt. Whatever is above this many times their
# norm adapts nothing: it is noise, a unit error or an overflow to come.
MAX_DELTA = 100.0
_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
# Headers may name dtypes that torch lacks and shapes beyond its integers or strides.
_UNREADABLE = (SafetensorError, ArithmeticError, LookupError, RuntimeError, TypeError, ValueError)


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
class AdapterWeights:
    """What one version changes: LoRA matrices (Hu et al., 2106.09685), whole deltas, which tokens are the
    core, and what is known of successors.

    `tensors` holds `<linear>.lora_a` [rank, in] and `<linear>.lora_b` [out, rank],
    float32 on the CPU, with the LoRA scale already folded into `lora_b`: the delta
    is lora_b @ lora_a. `<parameter>.delta`, as large as that parameter, is one whole, of a norm or of a
    linear layer without LoRA matrices. Weights that are not named stay at the base. `core_ranks` holds token
    ids by falling frequency in the cluster's traffic, distinct, int32 [ranks]; None leaves the drafter's
    own. `successors` are tables of the cluster's statistical index by `tenant_key`.
    """

    version: int
    tensors: dict[str, Tensor]
    core_ranks: Tensor | None = None
    successors: SuccessorTables = field(default_factory=dict)

    @property
    def contents(self) -> dict[str, Tensor]:
        """All tensors of the version by name, as they are published."""
        core = {} if self.core_ranks is None else {CORE: self.core_ranks}
        return {**self.tensors, **core, **to_tensors(self.successors)}

    def to_bytes(self) -> bytes:
        return bytes(save({name: tensor.contiguous() for name, tensor in self.contents.items()}))

    @classmethod
    def from_bytes(cls, blob: bytes, version: int, drafter: Drafter) -> AdapterWeights:
        """Raises WireError: not safetensors, unknown names, other shapes or dtypes, non-finite values, ids
        outside the vocabulary."""
        try:
            tensors = load(blob)
        except _UNREADABLE as error:
            raise WireError(f"adapter version {version} is not valid safetensors: {error}") from None
        core_ranks = tensors.pop(CORE, None)
        if core_ranks is not None:
            _check_core(core_ranks, version, drafter.config.vocab_size)
        try:
            successors = take_tables(tensors, drafter.config.vocab_size)
        except WireError as error:
            raise WireError(f"adapter version {version}: {error}") from None
        for name, tensor in tensors.items():
            dimensions = (1, 2) if name.endswith(DELTA) else (2,)
            if tensor.dtype not in _DTYPES or tensor.dim() not in dimensions or not tensor.numel():
                raise WireError(
                    f"adapter version {version}: {name[:80]!r} is {tensor.dtype} of shape "
                    f"{tuple(tensor.shape[:4])}, not a matrix of floats"
                )
        floats = {name: tensor.float() for name, tensor in tensors.items()}
        adapter = cls(version, floats, core_ranks, successors)
        adapter.check(drafter)
        return adapter

    def check(self, drafter: Drafter) -> None:
        """Raises WireError unless every tensor fits a weight of `drafter` and is finite."""
        linears, parameters = adapted_linears(drafter), adapted_parameters(drafter)
        for name, tensor in self.tensors.items():
            if name.endswith(DELTA):
                fits = name.removesuffix(DELTA) in parameters
            else:
                fits = name.endswith((LORA_A, LORA_B)) and name[: -len(LORA_A)] in linears
            if not fits:
                raise WireError(f"adapter version {self.version}: the drafter has no place for {name[:80]!r}")
            if not torch.isfinite(tensor).all():
                raise WireError(f"adapter version {self.version}: {name} holds NaN or infinity")
        self._check_deltas(parameters)
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

    def check_norms(self, limits: Mapping[str, float]) -> None:
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
                    f"adapter version {self.version}: the delta of {name} has norm {bound:.3g}, "
                    f"at most {limits[name]:.3g} is an adaptation"
                )

    def scaled(self, share: float) -> AdapterWeights:
        """The same version with all deltas so much of what they are."""
        tensors = {
            name: tensor if name.endswith(LORA_A) else tensor * share for name, tensor in self.tensors.items()
        }
        return replace(self, tensors=tensors)

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

    def _check_deltas(self, parameters: Mapping[str, Tensor]) -> None:
        for name, delta in self.whole_deltas().items():
            if delta.shape != parameters[name].shape:
                raise WireError(
                    f"adapter version {self.version}: {name}{DELTA} has shape {tuple(delta.shape)}, the "
                    f"drafter's is {tuple(parameters[name].shape)}"
                )
            if name.removesuffix(".weight") + LORA_A in self.tensors:
                raise WireError(f"adapter version {self.version}: {name} has LoRA matrices and a whole delta")


@dataclass(frozen=True, slots=True)
class StagedAdapter:
    """An adapter that was checked and is ready to be written.

    Attributes:
        weights: base + delta of every linear layer and norm by parameter, on the drafter's device, in its
            dtype.
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

    Requests in flight across a swap: the caller swaps between cycles, so that a draft is of one
    version, and the next cycle drafts with the new one, for every request. Drafter keys cached
    before the swap stay: they are guesses made by an older version, and the target verifies
    whatever follows from them. What requests get does not depend on it. Each token of a greedy
    request, and with `sampled_drafts: best` each token of a seeded one, is the same as without the
    swap, whether the version goes up, down or to the base; with `sampled_drafts: drawn` each token
    follows the same distribution. Only the number of tokens a cycle yields changes.
    """

    __slots__ = ("_base", "_drafter", "_limits", "_parameters", "_sender", "version")

    def __init__(self, drafter: Drafter) -> None:
        self._drafter = drafter
        self._parameters = adapted_parameters(drafter)
        self._base = {name: weight.detach().to("cpu", copy=True) for name, weight in self._parameters.items()}
        self._limits = delta_limits(drafter)
        self._sender = _Sender(self._base, drafter.device) if drafter.device.type == "cuda" else None
        self.version = 0

    @torch.inference_mode()
    def stage(self, adapter: AdapterWeights) -> StagedAdapter:
        """Checks an adapter, merges it on the CPU and sends the sums to the drafter's device, beside what
        runs there; any thread may call it at any time.

        Raises:
            WireError: it does not fit the drafter, or its deltas are absurdly large.
        """
        adapter.check(self._drafter)
        adapter.check_norms(self._limits)
        deltas = adapter.deltas()
        merged = {
            name: _merge(base, deltas[name]) if name in deltas else base for name, base in self._base.items()
        }
        if self._sender is None:
            return StagedAdapter(adapter.version, merged, adapter.core_ranks, adapter.successors)
        return self._sender.send(adapter, merged)

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
        torch._foreach_copy_([self._parameters[name] for name in adapter.weights], staged)
        if adapter.sent is not None:
            for weight in staged:
                weight.record_stream(torch.cuda.current_stream())  # freed when the copy is done
        self.version = adapter.version
        return adapter


def _merge(base: Tensor, delta: Tensor) -> Tensor:
    """Their sum in the base's dtype; summed in float32."""
    return (base.float() + delta).to(base.dtype)


class _Sender:
    """Sends weights to a CUDA device on a stream of its own, from memory that the device reads by itself."""

    __slots__ = ("_device", "_last", "_lock", "_pinned", "_stream")

    def __init__(self, like: Mapping[str, Tensor], device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device)
        self._pinned = {name: torch.empty_like(tensor, pin_memory=True) for name, tensor in like.items()}
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
