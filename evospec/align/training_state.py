"""What goes beside a version so that another aligner can train on from it: AdamW's moments, counters."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
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


@dataclass(frozen=True, slots=True)
class TrainingState:
    """Beside the adapter of `version`, all that training on from it takes; the traces are not kept.

    `moments` are those of each trained parameter, by name; there are none before the first step.
    """

    version: int
    steps: int
    skipped_steps: int
    replay: ReplaySummary
    moments: dict[str, Moments]

    def to_bytes(self) -> bytes:
        """Safetensors: two tensors a parameter, and a JSON document in the metadata."""
        header = _Header(
            schema=SCHEMA,
            version=self.version,
            steps=self.steps,
            skipped_steps=self.skipped_steps,
            replay=self.replay,
            updates={name: moments.updates for name, moments in self.moments.items()},
        )
        tensors = {name + _MEAN: moments.mean.contiguous() for name, moments in self.moments.items()}
        tensors |= {name + _SQUARE: moments.square.contiguous() for name, moments in self.moments.items()}
        return bytes(save(tensors, metadata={_HEADER: header.model_dump_json(by_alias=True)}))

    @classmethod
    def from_bytes(cls, blob: bytes, shapes: Mapping[str, torch.Size]) -> TrainingState:
        """
        Args:
            shapes: of every parameter that is trained, by name.

        Raises:
            WireError: not a training state for those parameters, too large, or not finite.
        """
        limit = 8 * sum(shape.numel() for shape in shapes.values()) + MAX_HEADER_BYTES
        if len(blob) > limit:
            raise WireError(f"training state has {len(blob)} bytes, this aligner's has at most {limit}")
        try:
            tensors = load(blob)
        except _UNREADABLE as error:
            raise WireError(f"training state is not valid safetensors: {error}") from None
        header = _read_header(blob)
        if header.updates and header.updates.keys() != shapes.keys():
            odd = min(header.updates.keys() ^ shapes.keys())
            raise WireError(f"training state is for other parameters than this aligner trains: {odd!r:.80}")
        expected = {name + suffix for name in header.updates for suffix in (_MEAN, _SQUARE)}
        if tensors.keys() != expected:
            raise WireError("training state does not hold two moments for each of its parameters")
        moments = {
            name: Moments(updates, tensors[name + _MEAN], tensors[name + _SQUARE])
            for name, updates in header.updates.items()
        }
        for name, found in moments.items():
            _check(name, found, shapes[name])
        return cls(header.version, header.steps, header.skipped_steps, header.replay, moments)


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
