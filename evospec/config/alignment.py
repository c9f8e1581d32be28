"""Settings of traces and of the aligner."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from evospec.config.section import Section


class AlignmentConfig(Section):
    """Traces, and the aligner that learns from them."""

    enabled: bool = True
    trace_top_k: int = Field(16, ge=1, le=128, description="Target tokens with log-probability per position.")
    trace_positions: int = Field(128, ge=8, le=4096, description="Positions per trace at most.")
    trace_past: int = Field(
        2048,
        ge=0,
        description="Positions before a trace, the latest, for which it brings what the drafter's cache "
        "holds: that is what drafts were made from. 0 leaves it out.",
    )
    trace_mb_per_s: float = Field(
        5.0,
        gt=0,
        description="Traces that a replica makes, at most: beyond that requests are not traced, so that a "
        "busy replica is not held up by it. Slow ones trace all.",
    )
    trace_buffer_mb: float = Field(16.0, gt=0, description="Unsent traces a replica may hold.")
    replay_mb: float = Field(256.0, gt=0, description="Traces the aligner keeps to learn from.")
    replay_clusters: int = Field(
        8,
        ge=1,
        le=64,
        description="Kinds of traffic that the replayed traces are shared out to, found by what requests are "
        "about: none can crowd out another. 1 keeps them all together.",
    )
    trace_features: Literal["bfloat16", "int8"] = Field(
        "bfloat16",
        description="How traces store features; `int8` with a scale per feature, in half the bytes.",
    )
    method: Literal["lora", "full-parameter"] = Field(
        "lora",
        description="What is trained: low-rank deltas, or all of the drafter's parameters, which learns more "
        "and takes several times the memory.",
    )
    publish_rank: int = Field(
        0,
        ge=0,
        le=256,
        description="Of `full-parameter`: rank to which versions cut what linear layers learned; 0: none.",
    )
    rank: int = Field(64, ge=1, le=256, description="LoRA rank.")
    alpha: float = Field(
        64.0, gt=0, description="LoRA scale is alpha / rank, of `rslora` alpha / sqrt(rank)."
    )
    scaling: Literal["lora", "rslora"] = Field("lora", description="What alpha is divided by.")
    targets: Literal["layer", "mlp", "fusion-mlp", "all"] = Field(
        "all",
        description="Linear layers that LoRA adapts: the decoder layer's, its MLP's, these and the fusion of "
        "the target's features, or all.",
    )
    adapters: int = Field(
        0,
        ge=0,
        le=16,
        description="Kinds of traffic that get an adapter of their own; 0: one adapter for all.",
    )
    norms: bool = Field(False, description="Adapt the weights of the drafter's norms, too, beside LoRA.")
    loss_rows: Literal["active", "vocabulary"] = Field(
        "active",
        description="Rows of the head that the loss scores: the core, the target's top-k and the batch's own "
        "tokens; or all, which takes far more memory and is there to compare with.",
    )
    positions: Literal["all", "wrong"] = Field(
        "all", description="Train on all generated positions, or only where a draft token was rejected."
    )
    position_weights: Literal["decay", "reach"] = Field(
        "decay",
        description="Weight of a draft step: 0.8 to its power, or the chance, by the drafter and target as "
        "they are, that drafting gets there at all.",
    )
    curriculum: Literal["uniform", "competence", "hard-first"] = Field(
        "uniform",
        description="Which positions count fully: all; the easiest, and the more the better the drafter is "
        "at them; or the hardest, as many. The others count a tenth.",
    )
    curriculum_margin: float = Field(
        0.4,
        ge=0,
        le=1,
        description="Share of positions that a curriculum takes beyond those that the drafter gets right.",
    )
    learning_rate: float = Field(1e-4, gt=0)
    warmup_steps: int = Field(
        20,
        ge=1,
        description="Steps in which the learning rate rises to its value, begun with new moments.",
    )
    weight_decay: float = Field(
        0.1,
        ge=0,
        description="Pull of what is trained back to the base, the proximal term: each step goes "
        "learning_rate * weight_decay of the way.",
    )
    blend: float = Field(
        0.5,
        gt=0,
        le=1,
        description="Share of what was learned that versions carry: weights part of the way from the base "
        "keep most of what was gained, and lose far less elsewhere.",
    )
    max_grad_norm: float = Field(1.0, gt=0, description="Gradients are clipped to this norm.")
    test_time_steps: int = Field(3, ge=1, le=16, description="Draft steps unrolled in training.")
    batch_traces: int = Field(8, ge=1, description="Traces per step.")
    steps_per_trace: float = Field(
        0.5, gt=0, description="Steps that each new trace pays for: without traffic the aligner rests."
    )
    cadence: Literal["steady", "adaptive"] = Field(
        "steady",
        description="`steady`: every trace pays the same. `adaptive`: more while acceptance drifts down, "
        "less once candidates stop being better.",
    )
    drift: float = Field(
        0.1,
        gt=0,
        lt=1,
        description="Acceptance has drifted when its short moving average is this share below the long one.",
    )
    drift_short: int = Field(8, ge=1, description="Traces after which a trace weighs half, short average.")
    drift_long: int = Field(64, ge=2, description="The same of the long average.")
    drift_boost: float = Field(3.0, ge=1, description="Factor of `steps_per_trace` during a drift.")
    idle_share: float = Field(
        0.25, gt=0, le=1, description="Factor of `steps_per_trace` after two candidates that were no better."
    )
    steps_per_version: int = Field(6, ge=1, description="Steps between two published versions.")
    successor_mb: float = Field(
        8.0,
        ge=0,
        description="Statistical tables that a version brings, all tenants together; 0 brings none.",
    )
    successor_half_life: int = Field(
        2048,
        ge=1,
        description="Traces of a tenant after which what the aligner counted for these tables has halved.",
    )
    min_traces: int = Field(8, ge=2, description="Traces needed before the first step.")
    holdout: float = Field(0.2, gt=0, lt=1, description="Share of traces kept from training, for the gate.")
    min_gain: float = Field(
        0.0, description="Expected acceptance length a candidate must add on held-out traces."
    )
    gate_traces: int = Field(32, ge=1, description="Held-out traces that judge a candidate, at most.")
    threads: int = Field(1, ge=1, description="CPU threads of the aligner.")
    gpus: float = Field(
        0.0, ge=0, description="GPUs, or the share of one, that the aligner reserves; 0 trains on processors."
    )
    resource: str | None = Field(
        None,
        pattern=r"^[A-Za-z0-9_.-]+$",
        description="Custom resource of Ray whose nodes the aligner runs on; it takes a thousandth of it.",
    )
    seed: int = 0

    @model_validator(mode="after")
    def _averages_differ(self) -> AlignmentConfig:
        if self.drift_long <= self.drift_short:
            raise ValueError(f"drift_long ({self.drift_long}) must be above drift_short ({self.drift_short})")
        return self

    @model_validator(mode="after")
    def _reach_is_known(self) -> AlignmentConfig:
        if self.positions == "wrong" and self.position_weights == "reach":
            raise ValueError(
                "positions: wrong leaves out what the chance to reach a position depends on: set "
                "position_weights to decay"
            )
        return self

    @model_validator(mode="after")
    def _kinds_have_linear_layers_only(self) -> AlignmentConfig:
        if self.adapters and self.norms:
            raise ValueError(
                f"adapters: {self.adapters} shares all but linear layers among kinds of traffic, norms: true "
                "trains more than these: set one of both back"
            )
        return self

    @model_validator(mode="after")
    def _whole_weights_are_cut_for_kinds(self) -> AlignmentConfig:
        if self.method == "lora" and self.publish_rank:
            raise ValueError(
                f"publish_rank: {self.publish_rank} cuts what method: full-parameter learns, lora publishes "
                "its own rank: set one of both back"
            )
        if self.method == "full-parameter" and self.adapters and not self.publish_rank:
            raise ValueError(
                f"adapters: {self.adapters} publishes low-rank deltas, method: full-parameter whole ones: "
                "set publish_rank to 128, or adapters to 0"
            )
        return self
