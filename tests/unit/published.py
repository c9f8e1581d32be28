"""Synthetic EAGLE-3 checkpoints in the published layouts, and a plain reference of what they compute."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn.functional import silu
from transformers import LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from evospec.decoding.chain import ChainDrafter, DraftRoot
from evospec.models.draft_body import DraftBody
from evospec.models.drafter_store import LoadedDrafter, load_drafter
from evospec.models.kv_cache import Window
from evospec.models.tables import TokenTables
from evospec.vocab.head_rows import HeadView

VOCAB, EOS = 260, 256
LAYERS = 8  # of the targets
STEPS = 6  # of a draft
CPU = torch.device("cpu")
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}


@dataclass(slots=True)
class Published:
    """A random checkpoint: its config.json as SafeAILab's layout has it, and its tensors."""

    config: dict[str, Any]
    weights: dict[str, Tensor] = field(default_factory=dict)

    @property
    def token_ids(self) -> Tensor:
        rows = self.config.get("draft_vocab_size") or self.config["vocab_size"]
        return torch.arange(rows) + self.weights.get("d2t", torch.zeros(rows, dtype=torch.int64))

    def write_eagle3(self, folder: Path) -> Path:
        """As SafeAILab, SpecForge and SGLang have it."""
        return write(folder, self.config, self.weights)

    def write_speculators(self, folder: Path) -> Path:
        """As vLLM's speculators library has it."""
        top = ("draft_vocab_size", "target_hidden_size", "norm_before_fc", "fc_norm", "norm_output")
        config = {
            "architectures": ["Eagle3DraftModel"],
            "speculators_model_type": "eagle3",
            "speculators_version": "0.5.0",
            "speculators_config": {
                "algorithm": "eagle3",
                "default_proposal_method": "greedy",
                "proposal_methods": [{"proposal_type": "greedy", "speculative_tokens": 3}],
                "verifier": {"architectures": ["LlamaForCausalLM"], "name_or_path": "some/target"},
            },
            "norm_before_residual": self.config.get("norm_before_residual", False),
            "eagle_aux_hidden_state_layer_ids": self.config.get("eagle_aux_hidden_state_layer_ids"),
            **{key: self.config[key] for key in top if key in self.config},
            "transformer_layer_config": {
                key: value
                for key, value in self.config.items()
                if key not in (*top, "norm_before_residual", "architectures")
            },
        }
        weights = {name.replace("midlayer.", "layers.0."): tensor for name, tensor in self.weights.items()}
        return write(folder, config, weights)


def write(folder: Path, config: dict[str, Any], weights: dict[str, Tensor]) -> Path:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config))
    save_file({name: tensor.contiguous() for name, tensor in weights.items()}, folder / "model.safetensors")
    return folder


def published(
    *,
    rows: int | None = 100,
    hidden: int = 32,
    heads: int = 4,
    head_dim: int | None = None,
    own_embedding: bool = False,
    seed: int = 0,
    **settings: Any,
) -> Published:
    """A random checkpoint. `rows` None leaves the head to the target; `settings` go to its config."""
    config = {
        "architectures": ["LlamaForCausalLMEagle3"],
        "model_type": "llama",
        "hidden_act": "silu",
        "hidden_size": hidden,
        "intermediate_size": 48,
        "max_position_embeddings": 512,
        "num_attention_heads": heads,
        "num_hidden_layers": 1,
        "num_key_value_heads": 2,
        "rms_norm_eps": 1e-5,
        "rope_scaling": None,
        "tie_word_embeddings": False,
        "vocab_size": VOCAB,
        "draft_vocab_size": rows,
        **settings,
    }
    if head_dim is not None:
        config["head_dim"] = head_dim
    made = Published(config)
    generator = torch.Generator().manual_seed(seed)
    dim = head_dim or hidden // heads
    features = 3 * (settings.get("target_hidden_size") or hidden)

    def add(name: str, *shape: int, around: float = 0.0) -> None:
        spread = 0.3 if around else 2.0 / math.sqrt(shape[-1])
        made.weights[name] = around + spread * torch.randn(shape, generator=generator)

    add("fc.weight", hidden, features)
    add("midlayer.self_attn.q_proj.weight", heads * dim, 2 * hidden)
    add("midlayer.self_attn.k_proj.weight", 2 * dim, 2 * hidden)
    add("midlayer.self_attn.v_proj.weight", 2 * dim, 2 * hidden)
    add("midlayer.self_attn.o_proj.weight", hidden, heads * dim)
    add("midlayer.mlp.gate_proj.weight", 48, hidden)
    add("midlayer.mlp.up_proj.weight", 48, hidden)
    add("midlayer.mlp.down_proj.weight", hidden, 48)
    for norm in ("input_layernorm", "hidden_norm", "post_attention_layernorm"):
        add(f"midlayer.{norm}.weight", hidden, around=1.0)
    add("norm.weight", hidden, around=1.0)
    if settings.get("norm_before_fc"):
        add("input_norm.weight", features, around=1.0)
    for index in range(3 if settings.get("fc_norm") else 0):
        add(f"fc_norm.{index}.weight", features // 3, around=1.0)
    if own_embedding:
        add("embed_tokens.weight", VOCAB, hidden)
    if rows is not None:
        add("lm_head.weight", rows, hidden)
        if rows < VOCAB:
            others = torch.randperm(EOS, generator=generator)[: rows - 1]
            ids = torch.cat((others, torch.tensor([EOS]))).sort().values
            made.weights["d2t"] = ids - torch.arange(rows)
            made.weights["t2d"] = torch.zeros(VOCAB, dtype=torch.bool)
            made.weights["t2d"][ids] = True
    return made


class Reference:
    """EAGLE-3 inference by the published code's description, without a cache and for one sequence.

    Args:
        embedding, head: the target's, used where the checkpoint has none of its own.
    """

    def __init__(self, made: Published, embedding: Tensor, head: Tensor) -> None:
        self.config, self.weights = made.config, made.weights
        self.embedding = made.weights.get("embed_tokens.weight", embedding)
        self.head = made.weights.get("lm_head.weight", head)
        self.token_ids = made.token_ids
        self.heads = self.config["num_attention_heads"]
        self.dim = self.config.get("head_dim") or self.config["hidden_size"] // self.heads

    def draft(self, features: Tensor, tokens: Tensor, steps: int) -> list[int]:
        """Greedy draft after pairs of features [pairs, 3 * target hidden] and next tokens [pairs]."""
        hidden = self.fuse(features)
        embeddings = self.embedding[tokens]
        drafted: list[int] = []
        for _ in range(steps):
            output = self.layer(hidden, embeddings)[-1]
            normed = self.norm(output, "norm")
            draft_id = int((self.head @ normed).argmax())
            drafted.append(int(self.token_ids[draft_id]))
            carried = normed if self.config.get("norm_output") else output
            hidden = torch.cat((hidden, carried[None]))
            embeddings = torch.cat((embeddings, self.embedding[drafted[-1]][None]))
        return drafted

    def fuse(self, features: Tensor) -> Tensor:
        if self.config.get("norm_before_fc"):
            features = self.norm(features, "input_norm")
        if self.config.get("fc_norm"):
            parts = features.chunk(3, dim=-1)
            features = torch.cat([self.norm(part, f"fc_norm.{i}") for i, part in enumerate(parts)], dim=-1)
        return features @ self.weights["fc.weight"].T

    def layer(self, hidden: Tensor, embeddings: Tensor) -> Tensor:
        """All pairs at once [pairs, hidden]."""
        normed = self.norm(hidden, "midlayer.hidden_norm")
        residual = normed if self.config.get("norm_before_residual") else hidden
        inputs = torch.cat((self.norm(embeddings, "midlayer.input_layernorm"), normed), dim=-1)
        hidden = residual + self.attention(inputs)
        inner = self.norm(hidden, "midlayer.post_attention_layernorm")
        gate, up = self.linear(inner, "mlp.gate_proj"), self.linear(inner, "mlp.up_proj")
        return hidden + self.linear(silu(gate) * up, "mlp.down_proj")

    def attention(self, inputs: Tensor) -> Tensor:
        pairs = len(inputs)
        query = self.rotate(self.linear(inputs, "self_attn.q_proj").view(pairs, self.heads, self.dim))
        key = self.rotate(self.linear(inputs, "self_attn.k_proj").view(pairs, -1, self.dim))
        value = self.linear(inputs, "self_attn.v_proj").view(pairs, -1, self.dim)
        groups = self.heads // key.shape[1]
        attended = torch.empty(pairs, self.heads, self.dim)
        for head in range(self.heads):
            scores = query[:, head] @ key[:, head // groups].T / math.sqrt(self.dim)
            scores = scores.masked_fill(torch.ones(pairs, pairs).triu(1).bool(), -torch.inf)
            attended[:, head] = scores.softmax(-1) @ value[:, head // groups]
        return self.linear(attended.flatten(1), "self_attn.o_proj")

    def rotate(self, states: Tensor) -> Tensor:
        """Coordinates i and i + dim / 2 as a complex number, turned by position [pairs, heads, dim]."""
        angles = torch.arange(len(states))[:, None] * self.frequencies()
        first, second = states.chunk(2, dim=-1)
        turned = torch.complex(first, second) * torch.polar(torch.ones_like(angles), angles)[:, None]
        return torch.cat((turned.real, turned.imag), dim=-1)

    def frequencies(self) -> Tensor:
        theta = self.config.get("rope_theta", 10_000.0)
        scaling = self.config.get("rope_scaling")
        if scaling is None:
            return 1.0 / theta ** (torch.arange(0, self.dim, 2) / self.dim)
        return llama3_frequencies(theta, self.dim, scaling)

    def norm(self, states: Tensor, name: str) -> Tensor:
        mean = states.pow(2).mean(-1, keepdim=True)
        return states / torch.sqrt(mean + self.config["rms_norm_eps"]) * self.weights[f"{name}.weight"]

    def linear(self, states: Tensor, name: str) -> Tensor:
        return states @ self.weights[f"midlayer.{name}.weight"].T


def llama3_frequencies(theta: float, dim: int, scaling: dict[str, Any]) -> Tensor:
    """As transformers computes them."""
    config = LlamaConfig(
        head_dim=dim, max_position_embeddings=512, rope_parameters={"rope_theta": theta, **scaling}
    )
    frequencies: Tensor = ROPE_INIT_FUNCTIONS["llama3"](config, torch.device("cpu"))[0]
    return frequencies


def target_tables(seed: int = 5, hidden: int = 32) -> TokenTables:
    generator = torch.Generator().manual_seed(seed)
    return TokenTables(
        torch.randn(VOCAB, hidden, generator=generator), torch.randn(VOCAB, hidden, generator=generator)
    )


def chain_draft(loaded: LoadedDrafter, target: TokenTables, features: Tensor, tokens: Tensor) -> list[int]:
    """Greedy draft over the drafter's whole list, as an engine makes it."""
    tables = loaded.drafter.tables(target)
    chain = ChainDrafter(DraftBody(loaded.drafter), tables)
    pairs = len(tokens)
    cache = loaded.drafter.new_cache(1, pairs + STEPS)
    hidden = chain.absorb(features[None], tokens[None], Window.of([0], pairs, CPU), cache)
    draft = chain.draft(
        DraftRoot(
            hidden=hidden[:, -1:],
            starts=torch.tensor([pairs]),
            lengths=torch.tensor([STEPS]),
            drawn=torch.tensor([0]),
            longest_context=pairs,
        ),
        STEPS,
        HeadView(tables.head, tables.head_ids),
        cache,
    )
    tokens_: list[int] = draft.tokens[0].tolist()
    return tokens_


def load(folder: Path) -> LoadedDrafter:
    return load_drafter(folder, torch.float32, CPU, LAYERS)
