"""What goes beside a version so that another aligner can train on from it: AdamW's moments, counters, and
weights that the version does not carry."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Literal

import torch
from pydantic import Field, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn

from evospec.align.replay import Count, ReplaySummary
from evospec.errors import WireError
from evospec.wire import Record

SCHEMA: Final = 1
MAX_HEADER_BYTES = 1 << 20  # names, shapes and counters, beside the moments themselves
MAX_UPDATES = 1 << 24  # AdamW counts in float32, which goes no further

_HEADER = "training_state"
_MEAN = ".exp_avg"
_SQUARE = ".exp_avg_sq"
_WEIGHT = ".weights"
# Headers may name dtypes that torch lacks, and shapes beyond its integers.
_UNREADABLE = (
    SafetensorError,
    ArithmeticError,
    AssertionError,
    LookupError,
    RuntimeError,
    TypeError,
    ValueError,
)


@dataclass(frozen=True, slots=True)
class Moments:
    """AdamW's memory of one parameter (Loshchilov & Hutter, 1711.05101).

    Attributes:
        updates: steps that it adds up.
        mean: running mean of the gradient, float32, as large as the parameter.
        square: running mean of the squared gradient, likewise; never negative.
    """

    updates: int
    mean: Tensor
    square: Tensor


class _Header(Record):
    schema_version: Literal[1] = Field(alias="schema")
    version: int = Field(ge=1)
    steps: Count
    skipped_steps: Count
    replay: ReplaySummary
    updates: dict[str, int]
    credits: list[float] = Field(default_factory=list)
    cut: list[int] = Field(default_factory=list)


@dataclass(frozen=True, slots=True)
class TrainingState:
    """Beside the adapter of `version`, all that training on from it takes; the traces are not kept.

    Attributes:
        moments: of each trained parameter, by name; there are none before the first step.
        weights: parameters, by name, that are not what the version carries.
        credits: steps that traces have paid for and that were not made yet, by kind of traffic.
        cut: kinds whose weights are here because the version carries only a cut of them, though of all that
            they have learned; 0 is also where all traffic is of one.
    """

    version: int
    steps: int
    skipped_steps: int
    replay: ReplaySummary
    moments: dict[str, Moments]
    weights: dict[str, Tensor] = field(default_factory=dict)
    credits: list[float] = field(default_factory=list)
    cut: list[int] = field(default_factory=list)

    def to_bytes(self) -> bytes:
        """Safetensors: two or three tensors a parameter, and a JSON document in the metadata."""
        header = _Header(
            schema=SCHEMA,
            version=self.version,
            steps=self.steps,
            skipped_steps=self.skipped_steps,
            replay=self.replay,
            updates={name: moments.updates for name, moments in self.moments.items()},
            credits=self.credits,
            cut=self.cut,
        )
        tensors = {name + _MEAN: moments.mean.contiguous() for name, moments in self.moments.items()}
        tensors |= {name + _SQUARE: moments.square.contiguous() for name, moments in self.moments.items()}
        tensors |= {name + _WEIGHT: weight.contiguous() for name, weight in self.weights.items()}
        written = header.model_dump_json(by_alias=True, exclude_defaults=True)
        return bytes(save(tensors, metadata={_HEADER: written}))

    @classmethod
    def from_bytes(cls, blob: bytes, students: Sequence[Mapping[str, torch.Size]]) -> TrainingState:
        """
        Args:
            students: shapes of every parameter that is trained, by name, for each optimiser: of each the
                state has moments of all parameters or none.

        Raises:
            WireError: not a training state for those parameters, too large, or not finite.
        """
        shapes = {name: shape for each in students for name, shape in each.items()}
        limit = 12 * sum(shape.numel() for shape in shapes.values()) + MAX_HEADER_BYTES
        if len(blob) > limit:
            raise WireError(f"training state has {len(blob)} bytes, this aligner's has at most {limit}")
        try:
            tensors = load(blob)
        except _UNREADABLE as error:
            raise WireError(f"training state is not valid safetensors: {error}") from None
        header = _read_header(blob)
        expected = {name for each in students if each.keys() & header.updates.keys() for name in each}
        if header.updates.keys() != expected:
            odd = min(header.updates.keys() ^ expected)
            raise WireError(f"training state is for other parameters than this aligner trains: {odd!r:.80}")
        weights = _take_weights(tensors, shapes)
        if tensors.keys() != {name + suffix for name in header.updates for suffix in (_MEAN, _SQUARE)}:
            raise WireError("training state does not hold two moments for each of its parameters")
        if not all(map(math.isfinite, header.credits)):
            raise WireError("training state: credits hold NaN or infinity")
        moments = {
            name: Moments(updates, tensors[name + _MEAN], tensors[name + _SQUARE])
            for name, updates in header.updates.items()
        }
        for name, found in moments.items():
            _check(name, found, shapes[name])
        return cls(
            header.version,
            header.steps,
            header.skipped_steps,
            header.replay,
            moments,
            weights,
            header.credits,
            header.cut,
        )


def _take_weights(tensors: dict[str, Tensor], shapes: Mapping[str, torch.Size]) -> dict[str, Tensor]:
    """Takes parameters out of what a state holds."""
    names = [name.removesuffix(_WEIGHT) for name in tensors if name.endswith(_WEIGHT)]
    weights = {name: tensors.pop(name + _WEIGHT) for name in names}
    for name, weight in weights.items():
        if name not in shapes:
            raise WireError(f"training state is for other parameters than this aligner trains: {name!r:.80}")
        if weight.dtype != torch.float32 or weight.shape != shapes[name] or not torch.isfinite(weight).all():
            raise WireError(f"training state: {name} is not finite float32 {list(shapes[name])}")
    return weights


def read_moments(optimizer: torch.optim.AdamW, parameters: Mapping[str, nn.Parameter]) -> dict[str, Moments]:
    """What `optimizer` remembers of each parameter, on the CPU; nothing before its first step."""
    return {
        name: Moments(int(seen["step"].item()), seen["exp_avg"].cpu(), seen["exp_avg_sq"].cpu())
        for name, parameter in parameters.items()
        if (seen := optimizer.state.get(parameter))
    }


def write_moments(optimizer: torch.optim.AdamW, moments: Mapping[str, Moments], names: list[str]) -> None:
    """Gives `optimizer`, whose parameters are called `names` in their order, what another remembered."""
    entries = {
        place: {
            "step": torch.tensor(float(moments[name].updates)),
            "exp_avg": moments[name].mean.clone(),
            "exp_avg_sq": moments[name].square.clone(),
        }
        for place, name in enumerate(names)
        if name in moments
    }
    optimizer.load_state_dict({"state": entries, "param_groups": optimizer.state_dict()["param_groups"]})


def _read_header(blob: bytes) -> _Header:
    """The JSON document in the metadata of `blob`, which safetensors has read already."""
    length = int.from_bytes(blob[:8], "little")
    metadata = json.loads(blob[8 : 8 + length]).get("__metadata__") or {}
    if _HEADER not in metadata:
        raise WireError("these tensors are not a training state: their metadata say nothing of one")
    try:
        return _Header.model_validate_json(metadata[_HEADER], strict=True)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])[:80]
        # One line, even where the document brought its own line breaks.
        raise WireError(" ".join(f"training state is not valid: {where}: {first['msg']}".split())) from None


def _check(name: str, moments: Moments, shape: torch.Size) -> None:
    if not 1 <= moments.updates <= MAX_UPDATES:
        raise WireError(f"training state counts {moments.updates} updates of {name}")
    for what, tensor in (("mean", moments.mean), ("square", moments.square)):
        if tensor.dtype != torch.float32 or tensor.shape != shape:
            raise WireError(
                f"training state: the {what} of {name} is {tensor.dtype} {list(tensor.shape)}, "
                f"expected float32 {list(shape)}"
            )
        if not torch.isfinite(tensor).all():
            raise WireError(f"training state: the {what} of {name} holds NaN or infinity")
    if (moments.square < 0).any():
        raise WireError(f"training state: the square of {name} is negative")
