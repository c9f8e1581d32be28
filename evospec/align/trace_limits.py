"""What the arrays of a trace must be: shapes follow from limits that both ends share."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from evospec.align.trace import Trace
from evospec.errors import EvoSpecError
from evospec.wire import Fingerprints

_OVERHEAD = 2048  # keys, headers, fingerprints

_INT32 = np.dtype("<i4")
UINT16 = np.dtype("<u2")
_FLOAT32 = np.dtype("<f4")
_FLOAT16 = np.dtype("<f2")
_INT8 = np.dtype("i1")
BOOL = np.dtype("?")

DTYPES: Mapping[str, np.dtype] = {
    "token_ids": _INT32,
    "features": UINT16,
    "top_ids": _INT32,
    "top_logprobs": _FLOAT16,
    "generated": BOOL,
    "draft_position": _INT8,
    "accepted": BOOL,
    "missed": BOOL,
    "past": UINT16,
    "context": UINT16,
    "feature_scales": _FLOAT32,
}


@dataclass(frozen=True, slots=True)
class TraceLimits:
    """What a trace must look like to be of use to one drafter.

    Attributes:
        vocab_size: token ids are below it.
        feature_size: taps * hidden of the drafter.
        top_k: target tokens per position, exactly.
        max_positions: widest window.
        kv_heads, head_dim: of the drafter's attention.
        context_size: hidden size of the target.
        max_past: most pairs before a window.
        max_length: positions of the drafter, which a window ends within.
        fingerprints: target, drafter and tokenizer it must come from.
    """

    vocab_size: int
    feature_size: int
    top_k: int
    max_positions: int
    kv_heads: int
    head_dim: int
    context_size: int
    max_past: int
    max_length: int
    fingerprints: Fingerprints

    @property
    def max_bytes(self) -> int:
        """Length of the largest valid blob, rounded up."""
        widest, longest = self.max_positions, self.max_past
        forms = (forms_of(widest, longest, self, scaled) for scaled in (False, True))
        return max(sum(form.nbytes for form in each.values()) for each in forms) + _OVERHEAD

    def check_room(self, positions: int, steps: int) -> None:
        """Raises EvoSpecError unless a drafter of so many positions can draft `steps` tokens behind a
        trace."""
        if self.max_positions + steps > positions:
            raise EvoSpecError(
                f"traces of {self.max_positions} positions need a drafter with {self.max_positions + steps}, "
                f"this one has {positions}: set alignment.trace_positions to at most {positions - steps}"
            )

    @property
    def pair_bytes(self) -> int:
        """Of a pair's key and value."""
        return 2 * self.kv_heads * self.head_dim * UINT16.itemsize


def arrays_of(trace: Trace) -> dict[str, np.ndarray]:
    """Of a trace, by name."""
    return {
        "token_ids": trace.token_ids,
        "features": trace.features,
        "top_ids": trace.top_ids,
        "top_logprobs": trace.top_logprobs,
        "generated": trace.generated,
        "draft_position": trace.draft_position,
        "accepted": trace.accepted,
        "missed": trace.missed,
        "past": trace.past,
        "context": trace.context,
        "feature_scales": trace.feature_scales,
    }


@dataclass(frozen=True, slots=True)
class Form:
    """What an array must be."""

    dtype: np.dtype
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        return int(np.prod(self.shape)) * self.dtype.itemsize


def dtypes_of(scaled: bool) -> dict[str, np.dtype]:
    """Of all arrays; features are bfloat16 unless there are scales."""
    return {**DTYPES, "features": _INT8 if scaled else UINT16}


def forms_of(width: int, past: int, limits: TraceLimits, scaled: bool) -> dict[str, Form]:
    shapes: dict[str, tuple[int, ...]] = {
        "token_ids": (width + 1,),
        "features": (width, limits.feature_size),
        "top_ids": (width, limits.top_k),
        "top_logprobs": (width, limits.top_k),
        "generated": (width,),
        "draft_position": (width,),
        "accepted": (width,),
        "missed": (width,),
        "past": (2, limits.kv_heads, past, limits.head_dim),
        "context": (limits.context_size,),
        "feature_scales": (limits.feature_size if scaled else 0,),
    }
    dtypes = dtypes_of(scaled)
    return {name: Form(dtypes[name], shape) for name, shape in shapes.items()}
