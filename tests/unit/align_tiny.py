"""A tiny world to align in: random drafter and tables, and traces of text that can be learned."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch

from evospec.align.trace import Trace
from evospec.align.trace_limits import TraceLimits
from evospec.align.trainer import AlignmentTrainer
from evospec.config import AlignmentConfig
from evospec.models.drafter import Drafter, DrafterConfig
from evospec.models.tables import TokenTables
from evospec.vocab.tenants import tenant_key
from evospec.wire import Fingerprints

VOCAB = 200
HIDDEN = 32
TAPS = 3
TOP_K = 4
POSITIONS = 64
KV_HEADS, HEAD_DIM = 2, 8
PAST = 40
LENGTH = 512
NO_PAST = np.zeros((2, KV_HEADS, 0, HEAD_DIM), np.uint16)
FINGERPRINTS = Fingerprints(target="t" * 16, drafter="d" * 16, tokenizer="k" * 16)
LIMITS = TraceLimits(
    vocab_size=VOCAB,
    feature_size=TAPS * HIDDEN,
    top_k=TOP_K,
    max_positions=POSITIONS,
    kv_heads=KV_HEADS,
    head_dim=HEAD_DIM,
    context_size=HIDDEN,
    max_past=PAST,
    max_length=LENGTH,
    fingerprints=FINGERPRINTS,
)
CORE = torch.arange(32)
ARRAYS = (
    "token_ids",
    "features",
    "top_ids",
    "top_logprobs",
    "generated",
    "draft_position",
    "accepted",
    "missed",
    "past",
    "context",
    "feature_scales",
)


def tiny_drafter(seed: int = 0) -> Drafter:
    torch.manual_seed(seed)
    config = DrafterConfig(
        hidden_size=HIDDEN,
        intermediate_size=64,
        num_attention_heads=4,
        num_key_value_heads=KV_HEADS,
        head_dim=HEAD_DIM,
        vocab_size=VOCAB,
        tap_layers=(0, 1, 2),
        max_positions=LENGTH,
    )
    return Drafter(config).requires_grad_(False).eval()


def tiny_tables(seed: int = 1) -> TokenTables:
    generator = torch.Generator().manual_seed(seed)
    embedding, head = torch.randn(2, VOCAB, HIDDEN, generator=generator)
    return TokenTables(embedding=embedding, head=head)


def tiny_config(**settings: object) -> AlignmentConfig:
    defaults: dict[str, object] = {
        "trace_top_k": TOP_K,
        "trace_positions": POSITIONS,
        "replay_mb": 4.0,
        "rank": 8,
        "alpha": 16.0,
        "learning_rate": 1e-2,
        "warmup_steps": 1,
        "blend": 1.0,
        "min_traces": 4,
    }
    return AlignmentConfig.model_validate({**defaults, **settings})


def tiny_trainer(**settings: object) -> AlignmentTrainer:
    return AlignmentTrainer(
        tiny_config(**settings), tiny_drafter(), tiny_tables(), CORE, LIMITS, draft_length=3
    )


def successor_map() -> np.ndarray:
    """A fixed text: each of 40 tokens has one successor, in a single cycle [VOCAB]."""
    cycle = np.random.default_rng(7).permutation(VOCAB)[:40]
    following = np.arange(VOCAB)
    following[cycle] = np.roll(cycle, -1)
    return following


def learnable_trace(seed: int, width: int = 48, context: int = 4) -> Trace:
    """A window of that text, whose target is sure of each next token; features are noise."""
    following = successor_map()
    rng = np.random.default_rng(seed)
    tokens = [int(rng.choice(np.flatnonzero(following != np.arange(VOCAB))))]
    for _ in range(width):
        tokens.append(int(following[tokens[-1]]))
    top_ids = np.zeros((width, TOP_K), dtype=np.int32)
    for row in range(context, width):
        others = np.setdiff1d(np.arange(VOCAB), tokens[row + 1])
        top_ids[row] = [tokens[row + 1], *rng.choice(others, TOP_K - 1, replace=False)]
    logprobs = np.log(np.array([0.9, *[0.02] * (TOP_K - 1)]))
    return plain_trace(
        rng,
        width,
        token_ids=np.array(tokens, dtype=np.int32),
        top_ids=top_ids,
        top_logprobs=np.tile(logprobs, (width, 1)).astype(np.float16),
        generated=np.arange(width) >= context,
    )


def random_trace(seed: int, width: int = 24, context: int = 4) -> Trace:
    """A valid trace without any sense in it."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(width, VOCAB)) * 2
    logprobs = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    order = np.argsort(-logprobs, axis=1)[:, :TOP_K]
    return plain_trace(
        rng,
        width,
        top_ids=order.astype(np.int32),
        top_logprobs=np.take_along_axis(logprobs, order, axis=1).astype(np.float16),
        generated=np.arange(width) >= context,
    )


def kind_trace(kind: int, number: int, make: Callable[[int], Trace] = learnable_trace) -> Trace:
    """A trace of some kind of traffic, which only its context tells."""
    direction = np.random.default_rng(1000 + kind).normal(size=HIDDEN)
    noise = 0.3 * np.random.default_rng(number).normal(size=HIDDEN)
    return replace(make(number), context=unit_bits(2 + direction + noise))


def plain_trace(rng: np.random.Generator, width: int, **arrays: np.ndarray) -> Trace:
    blank = Trace(
        fingerprints=FINGERPRINTS,
        adapter_version=3,
        vocabulary_epoch=5,
        tenant=tenant_key(""),
        prompt_length=12,
        start=7,
        token_ids=rng.integers(0, VOCAB, width + 1).astype(np.int32),
        features=bfloat16_bits(rng.normal(size=(width, TAPS * HIDDEN))),
        top_ids=np.zeros((width, TOP_K), dtype=np.int32),
        top_logprobs=np.zeros((width, TOP_K), dtype=np.float16),
        generated=np.ones(width, dtype=bool),
        draft_position=rng.integers(-1, 5, width).astype(np.int8),
        accepted=np.zeros(width, dtype=bool),
        missed=rng.random(width) < 0.2,
        past=bfloat16_bits(rng.normal(size=(2, KV_HEADS, 7, HEAD_DIM))),
        context=unit_bits(rng.normal(size=HIDDEN)),
    )
    return replace(blank, **arrays)


def bfloat16_bits(values: np.ndarray) -> np.ndarray:
    return (values.astype(np.float32).view(np.uint32) >> 16).astype(np.uint16)


def unit_bits(values: np.ndarray) -> np.ndarray:
    """Of a vector brought to length 1."""
    return bfloat16_bits(values / np.linalg.norm(values))


def traces_equal(left: Trace, right: Trace) -> bool:
    numbers = ("fingerprints", "adapter_version", "vocabulary_epoch", "tenant", "prompt_length", "start")
    return all(getattr(left, name) == getattr(right, name) for name in numbers) and all(
        getattr(left, name).dtype == getattr(right, name).dtype
        and np.array_equal(getattr(left, name), getattr(right, name))
        for name in ARRAYS
    )
