"""Whether a trace is of use: nothing is believed of what a replica sends."""

from __future__ import annotations

import numpy as np

from evospec.align.trace import Trace, floats_of
from evospec.align.trace_limits import TraceLimits, arrays_of, forms_of
from evospec.errors import WireError

CONTEXT_SLACK = 0.02  # bfloat16 rounds each number of a unit vector
_PROBABILITY_SLACK = 1.01  # float16 rounds each log-probability
_LARGEST_SCALE = float(np.finfo(np.float32).max) / 128  # no int8 feature overflows


def check(trace: Trace, limits: TraceLimits) -> None:
    """Raises WireError unless shapes, types and contents are those of a usable trace."""
    if trace.fingerprints != limits.fingerprints:
        raise WireError(
            f"trace comes from ({trace.fingerprints}), this aligner serves ({limits.fingerprints})"
        )
    if not 1 <= trace.width <= limits.max_positions:
        raise WireError(f"trace has {trace.width} positions, 1 to {limits.max_positions} are taken")
    if trace.past_pairs > min(limits.max_past, trace.start):
        raise WireError(
            f"trace: past has {trace.past_pairs} pairs, before position {trace.start} at most "
            f"{min(limits.max_past, trace.start)} are taken"
        )
    if trace.start + trace.width > limits.max_length:
        raise WireError(
            f"trace ends at position {trace.start + trace.width}, the drafter has {limits.max_length}"
        )
    forms = forms_of(trace.width, trace.past_pairs, limits, trace.is_quantised)
    for name, array in arrays_of(trace).items():
        form = forms[name]
        if array.dtype != form.dtype or array.shape != form.shape:
            raise WireError(
                f"trace: {name} is {array.dtype} {array.shape}, expected {form.dtype} {form.shape}"
            )
    for name, ids in (("token_ids", trace.token_ids), ("top_ids", trace.top_ids)):
        if ids.min() < 0 or ids.max() >= limits.vocab_size:
            raise WireError(f"trace: {name} holds ids outside the vocabulary of {limits.vocab_size}")
    if trace.is_quantised:
        scales = trace.feature_scales
        if not ((scales >= 0) & (scales <= _LARGEST_SCALE)).all():
            raise WireError("trace: feature_scales hold NaN, or what is negative or too large")
    elif not finite_bfloat16(trace.features):
        raise WireError("trace: features hold NaN or infinity")
    for name, bits in (("past", trace.past), ("context", trace.context)):
        if not finite_bfloat16(bits):
            raise WireError(f"trace: {name} holds NaN or infinity")
    length = np.linalg.norm(floats_of(trace.context).astype(np.float64))
    if not abs(length - 1) <= CONTEXT_SLACK:
        raise WireError(f"trace: context has length {length:.3g}, expected 1")
    _check_targets(trace)
    if trace.draft_position.min() < -1 or (trace.accepted & (trace.draft_position < 0)).any():
        raise WireError("trace: an accepted token has no place in a draft")


def finite_bfloat16(bits: np.ndarray) -> bool:
    """Whether bfloat16 bit patterns (uint16, any shape) are all finite: the exponent is not all ones."""
    return int((bits & 0x7FFF).max(initial=0)) < 0x7F80


def _check_targets(trace: Trace) -> None:
    logprobs = trace.top_logprobs.astype(np.float32)  # [width, k]
    if not np.isfinite(logprobs).all():
        raise WireError("trace: top_logprobs hold NaN or infinity")
    if logprobs.max(initial=0.0) > 0.01:
        raise WireError(f"trace: top_logprobs reach {logprobs.max():.3g}, log-probabilities are at most 0")
    scored = trace.generated
    if (np.exp(logprobs[scored]).sum(axis=-1) > _PROBABILITY_SLACK).any():
        raise WireError("trace: the probabilities of a position's top tokens exceed 1")
    ordered = np.sort(trace.top_ids[scored], axis=-1)
    if (ordered[:, 1:] == ordered[:, :-1]).any():
        raise WireError("trace: a position names the same top token twice")
