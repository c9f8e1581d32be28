"""Our own decoder layers compute what transformers' do, for every family they claim to know."""

from __future__ import annotations

import weakref
from typing import Any

import pytest
import torch
from transformers import (
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from evospec.models.attention import ATTENTION_NAME, register_attention
from evospec.models.body import Body, BodyOutput, TransformersBody
from evospec.models.decoder import DecoderBody
from evospec.models.kv_cache import KVCache, Tree, Window
from evospec.models.ops import AttentionPlan, HeadShape, TorchOps

CPU = torch.device("cpu")
VOCAB, LAYERS, KV_HEADS, HEAD_DIM = 64, 4, 2, 16  # the smallest heads that kernels take
SHAPE: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 64,
    "intermediate_size": 48,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "num_key_value_heads": KV_HEADS,
    "head_dim": HEAD_DIM,
    "max_position_embeddings": 256,
    "attn_implementation": ATTENTION_NAME,
}
LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 1e4,
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
ALTERNATING = ["sliding_attention", "full_attention"] * 2

FAMILIES = {
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**SHAPE)),
    "llama with biases and scaled rope": lambda: LlamaForCausalLM(
        LlamaConfig(**SHAPE, attention_bias=True, rope_parameters=LLAMA3_ROPE)
    ),
    "mistral, sliding": lambda: MistralForCausalLM(MistralConfig(**SHAPE, sliding_window=16)),
    "qwen2": lambda: Qwen2ForCausalLM(Qwen2Config(**SHAPE)),
    "qwen3": lambda: Qwen3ForCausalLM(Qwen3Config(**SHAPE)),
    "gemma3, sliding and full": lambda: Gemma3ForCausalLM(
        Gemma3TextConfig(**SHAPE, sliding_window=16, layer_types=ALTERNATING, query_pre_attn_scalar=24)
    ),
}


def build(family: str, dtype: torch.dtype) -> PreTrainedModel:
    register_attention()
    torch.manual_seed(0)
    model: PreTrainedModel = FAMILIES[family]().to(dtype).eval()
    for parameter in model.parameters():  # norms and biases too: fresh ones are ones and zeros
        parameter.data += 0.1 * torch.randn_like(parameter)
    return model


def new_cache(slots: int, positions: int, dtype: torch.dtype) -> KVCache:
    return KVCache(
        layers=LAYERS,
        kv_heads=KV_HEADS,
        head_dim=HEAD_DIM,
        slots=slots,
        positions=positions,
        dtype=dtype,
        device=CPU,
    )


@torch.inference_mode()
def passes(body: Body, dtype: torch.dtype) -> list[BodyOutput]:
    """A prompt, a ragged window, a draft tree, and one token of one row, over one cache."""
    torch.manual_seed(1)
    cache = new_cache(3, 128, dtype)
    ids = torch.randint(0, VOCAB, (3, 40))
    tree = Tree(torch.tensor([[0, 1, 1, 2]] * 3), torch.tensor([[0b1, 0b11, 0b101, 0b1011]] * 3))
    return [
        body(ids, Window.of([0, 0, 0], 40, CPU), cache, (0, 2, 3)),
        body(ids[:, :5], Window.of([40, 35, 20], 5, CPU), cache, (1,)),
        body(ids[:, :4], Window(0, torch.tensor([45, 40, 25]), 4, 49, tree=tree), cache, (3,)),
        body(ids[:1, :1], Window.of([30], 1, CPU, first_slot=2), cache, ()),
    ]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("family", FAMILIES)
def test_equals_transformers(family: str, dtype: torch.dtype) -> None:
    model = build(family, dtype)
    theirs = passes(TransformersBody(model), dtype)
    assert DecoderBody.knows(model)
    ours = passes(DecoderBody(model, TorchOps()), dtype)
    for mine, reference in zip(ours, theirs, strict=True):
        tolerance = 1e-5 if dtype is torch.float32 else 0.0
        torch.testing.assert_close(mine.hidden, reference.hidden, rtol=tolerance, atol=tolerance)
        for tapped, expected in zip(mine.tapped, reference.tapped, strict=True):
            torch.testing.assert_close(tapped, expected, rtol=tolerance, atol=tolerance)


def test_merged_weights_are_held_once() -> None:
    model = build("qwen2", torch.float32)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    DecoderBody(model, TorchOps())
    attention = model.base_model.layers[0].self_attn
    query, key = attention.q_proj.weight, attention.k_proj.weight
    assert query.untyped_storage().data_ptr() == key.untyped_storage().data_ptr()
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_rope_that_depends_on_the_length_is_left_to_transformers() -> None:
    settings = {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}
    model = LlamaForCausalLM(LlamaConfig(**SHAPE, rope_parameters=settings))
    assert not DecoderBody.knows(model)


def test_places_of_a_tree_see_context_and_ancestors_alone() -> None:
    """A tree of two branches gives each leaf what its own chain gives it."""
    model = build("llama", torch.float32)
    body = DecoderBody(model, TorchOps())
    context, branches = torch.tensor([[5, 9, 11]]), ([7, 3], [7, 12])

    def fresh() -> KVCache:
        cache = new_cache(1, 32, torch.float32)
        body(context, Window.of([0], 3, CPU), cache, ())
        return cache

    with torch.inference_mode():
        tree = Tree(torch.tensor([[0, 1, 1]]), torch.tensor([[0b1, 0b11, 0b101]]))
        window = Window(0, torch.tensor([3]), 3, 6, tree=tree)
        drafted = body(torch.tensor([[7, 3, 12]]), window, fresh(), ()).hidden
        for leaf, branch in enumerate(branches, start=1):
            alone = body(torch.tensor([branch]), Window.of([3], 2, CPU), fresh(), ()).hidden
            torch.testing.assert_close(drafted[0, [0, leaf]], alone[0])


@torch.no_grad()
def test_a_longer_cache_leaves_what_captured_graphs_read() -> None:
    """A graph captured over a short cache goes on reading the rotary table that it was captured with."""
    body = DecoderBody(build("llama", torch.float32), (ops := _Noting()))
    for positions in (20, 100, 30):
        cache = new_cache(1, positions, torch.float32)
        body(torch.tensor([[1, 2]]), Window.of([0], 2, CPU), cache, ())
    first, longer, last = (table() for table in ops.tables)
    assert first is not None
    assert longer is not None
    assert longer.shape[1] >= 100
    assert last is longer


class _Noting(TorchOps):
    """Remembers, but does not hold, the tables it was given."""

    def __init__(self) -> None:
        self.tables: list[weakref.ref[torch.Tensor]] = []

    def plan(self, window: Window, shape: HeadShape, table: torch.Tensor) -> AttentionPlan:
        self.tables.append(weakref.ref(table))
        return super().plan(window, shape, table)
