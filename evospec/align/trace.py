"""Acceptance traces: what training needs of served traffic, and nothing more.

A trace is a window of consecutive positions of one request: token ids, target
features, the target's best tokens with log-probabilities, and what became of the
draft tokens. It holds no text.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from evospec.wire import Fingerprints

TRACE_SCHEMA = 4


@dataclass(frozen=True, slots=True, eq=False)
class Trace:
    """`width` consecutive positions of one request.

    Position i of the window holds the token with index `start + i` of the request.

    Attributes:
        tenant: whose request it is, as `evospec.vocab.tenants.tenant_key` names tenants.
        prompt_length: tokens of the request's prompt.
        start: index of the window's first token in the request.
        token_ids: tokens start .. start + width, int32 [width + 1]: the token after the
            window is there to pair the last feature with.
        features: the target's fused features [width, taps * hidden]; row i belongs to token i. bfloat16 bit
            patterns as uint16, or int8 with `feature_scales`.
        top_ids: the target's best tokens for the NEXT token, int32 [width, k]; row i was
            computed at token i and predicts token i + 1.
        top_logprobs: their log-probabilities at temperature 1, float16 [width, k].
        generated: whether token i + 1 was generated (not prompt) and is scored by this window,
            bool [width]. Only these positions carry meaningful top_ids; the others, prompt or
            scored by the window before, are zero and serve as context.
        draft_position: int8 [width]; for token i + 1: its place in the draft it was
            checked in (0 first), -1 when it was not drafted (bonus, or first token).
        accepted: bool [width]; whether the draft token at that place was accepted.
        missed: bool [width]; token i + 1 was not in the active vocabulary, whatever was drafted from.
        past: keys, rotated, and values of the drafter at positions before `start`, the latest of those that
            it had when the window was opened, bfloat16 bit patterns as uint16 [2, kv_heads, pairs,
            head_dim]. The window alone is not what drafts were made from.
        context: what the request is about, the mean of the target's last hidden states over its prompt, of
            length 1, bfloat16 bit patterns as uint16 [hidden].
        feature_scales: of int8 features, what each feature is multiplied by, float32 [taps * hidden];
            none [0] of bfloat16 ones.
    """

    fingerprints: Fingerprints
    adapter_version: int
    vocabulary_epoch: int
    tenant: str
    prompt_length: int
    start: int
    token_ids: np.ndarray
    features: np.ndarray
    top_ids: np.ndarray
    top_logprobs: np.ndarray
    generated: np.ndarray
    draft_position: np.ndarray
    accepted: np.ndarray
    missed: np.ndarray
    past: np.ndarray
    context: np.ndarray
    feature_scales: np.ndarray = field(default_factory=lambda: np.zeros(0, dtype=np.float32))

    @property
    def width(self) -> int:
        return int(self.features.shape[0])

    @property
    def is_quantised(self) -> bool:
        return self.feature_scales.size > 0

    def float_features(self) -> np.ndarray:
        """Features as numbers, float32 [width, taps * hidden]."""
        if self.is_quantised:
            numbers: np.ndarray = self.features * self.feature_scales
            return numbers
        return floats_of(self.features)

    @property
    def past_pairs(self) -> int:
        return int(self.past.shape[2])

    @property
    def first_new(self) -> int:
        """Place in `token_ids` of the first token that no earlier window of the request held."""
        if self.start < self.prompt_length:
            return 0
        return int(np.argmax(self.generated)) + 1 if self.generated.any() else self.width + 1

    @property
    def nbytes(self) -> int:
        return sum(
            array.nbytes
            for array in (
                self.token_ids,
                self.features,
                self.top_ids,
                self.top_logprobs,
                self.generated,
                self.draft_position,
                self.accepted,
                self.missed,
                self.past,
                self.context,
                self.feature_scales,
            )
        )


def floats_of(bits: np.ndarray) -> np.ndarray:
    """What bfloat16 bit patterns, uint16, stand for, float32 of the same shape."""
    # bfloat16 is the upper half of float32: numpy has no bfloat16, so the bits are moved here.
    floats: np.ndarray = (bits.astype(np.uint32) << 16).view(np.float32)
    return floats
