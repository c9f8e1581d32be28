"""Every setting of EvoSpec, typed, with its default and its bounds.

One frozen pydantic model per part. A wrong value is rejected when the config is
built, in one place; code below this file reads plain attributes.
"""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator


class Section(BaseModel):
    """Base of all sections: unknown keys are errors, values never change."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class ModelConfig(Section):
    """Which target is served, and which drafter guesses for it."""

    target: str = Field(
        "smollm2-135m",
        description="Hub id, local folder, GGUF file, or a built-in name (see `evospec models`).",
    )
    drafter: str | None = Field(
        "default",
        description="Folder (ours or a published EAGLE-3 checkpoint), Hub id or shipped name; `default` is "
        "the one shipped for the target; null decodes plainly.",
    )
    drafter_check: Literal["strict", "shape"] = Field(
        "strict",
        description="`strict` refuses a drafter trained for other weights; `shape` only checks that it fits.",
    )
    device: Literal["auto", "cpu", "cuda"] = "auto"
    dtype: Literal["auto", "float32", "bfloat16"] = Field(
        "auto", description="`auto` is bfloat16 where the processor computes in it, else float32."
    )
    threads: int = Field(0, ge=0, description="CPU threads for one replica; 0 keeps PyTorch's default.")


class EngineConfig(Section):
    """Batching and drafting of one decoding engine."""

    max_batch: int = Field(8, ge=1, le=1024, description="Requests decoded together.")
    max_length: int = Field(
        2048, ge=16, description="Prompt and output tokens of one request; capped by the target's own limit."
    )
    drafting: Literal["auto", "chain", "tree"] = Field(
        "auto",
        description="`chain` and `tree` always draft that way; `auto` takes what measured times and recent "
        "acceptance say is fastest, plain decoding included.",
    )
    draft_length: int = Field(5, ge=0, le=16, description="Draft tokens of a chain; 0 is plain decoding.")
    tree_depth: int = Field(4, ge=1, le=8, description="Levels of a draft tree.")
    tree_beam: int = Field(4, ge=1, le=10, description="Tokens expanded on each level.")
    tree_nodes: int = Field(12, ge=1, le=62, description="Draft tokens of a tree.")
    sampled_drafts: Literal["best", "drawn"] = Field(
        "best",
        description="For requests with a temperature: `best` drafts the likeliest tokens, and the same seed "
        "gives the same text whatever the drafter and the load; `drawn` draws them, which is accepted more "
        "often at high temperatures.",
    )
    prefill_chunk: int = Field(512, ge=1, description="Prompt tokens processed between two cycles.")
    overlap: Literal["auto", "on", "off"] = Field(
        "auto",
        description="Launch a cycle before the outcome of the last one is known, so that a GPU never waits "
        "for the host; `auto` does so on a GPU.",
    )

    @model_validator(mode="after")
    def _tree_fits(self) -> EngineConfig:
        candidates = self.tree_beam + (self.tree_depth - 1) * self.tree_beam**2
        if self.tree_nodes > candidates:
            raise ValueError(
                f"tree_nodes ({self.tree_nodes}) exceeds the {candidates} candidates of a tree of depth "
                f"{self.tree_depth} and beam {self.tree_beam}"
            )
        if self.tree_depth * self.tree_beam > 63:
            raise ValueError("tree_depth * tree_beam may be at most 63")
        return self


SourceName = Literal["context", "verification", "statistical", "semantic"]


class VocabularyConfig(Section):
    """Which rows of the LM head the drafter scores."""

    policy: str = Field(
        "evospec",
        description="`evospec`; `full`; a static list of the K most frequent tokens: `vocabtrim:K`, "
        "`fr-spec:K` or, counted in a corpus file, `fr-spec:K:FILE`; `nanospec`; `specvocab:RANK:K`.",
    )
    sources: tuple[SourceName, ...] = Field(
        ("context", "verification", "statistical", "semantic"),
        description="What makes tokens active beside the core: the text itself, what the target ranked high, "
        "what followed in earlier requests, what similar contexts used.",
    )
    capacity: int = Field(
        4096,
        ge=64,
        description="Slots of the active-row buffer. Rows beyond twice the core are kept as long as they "
        "save more time than they take.",
    )
    core: int = Field(1024, ge=0, description="Most frequent tokens, always active.")
    context_window: int = Field(
        1024, ge=0, description="Latest tokens of each request whose rows are pinned while it runs."
    )
    top_k: int = Field(6, ge=0, le=64, description="Target's best tokens taken per verified position.")
    prompt_ranked: int = Field(
        64, ge=0, description="Latest prompt positions whose best tokens are taken at prefill."
    )
    half_life: int = Field(128, ge=1, description="Cycles after which an unused row's score has halved.")
    successor_heads: int = Field(
        8192, ge=1, description="Tokens whose successors the statistical index keeps, per tenant."
    )
    successors: int = Field(32, ge=1, le=1024, description="Long-tail tokens kept for each of them.")
    successor_window: int = Field(
        16, ge=1, le=256, description="A token counts as a successor of those up to so many places before it."
    )
    successor_half_life: int = Field(
        256, ge=1, description="Requests after which what the statistical index counted has halved."
    )
    tenants: int = Field(
        16, ge=1, description="Tenants whose statistical index is kept, here and in the aligner, the latest."
    )

    @model_validator(mode="after")
    def _core_fits(self) -> VocabularyConfig:
        if self.core > self.capacity // 2:
            raise ValueError(
                f"core ({self.core}) may fill at most half of capacity ({self.capacity}): "
                "raise capacity or lower core"
            )
        return self


class SemanticConfig(Section):
    """The semantic token index, shared by all replicas."""

    enabled: bool = True
    url: str | None = Field(None, description="Qdrant server; null embeds one, owned by one actor.")
    path: str | None = Field(
        None, description="Folder that keeps the embedded index between runs; null keeps it in memory."
    )
    api_key: str | None = Field(None, repr=False)
    grpc_port: int | None = Field(
        None, ge=1, le=65535, description="The server's gRPC port: set, all calls go there; null uses REST."
    )
    ca_file: str | None = Field(
        None,
        description="PEM file of the authorities that may sign an https server's certificate; null trusts "
        "the system's.",
    )
    collection: str = Field("evospec-tokens", min_length=1)
    neighbours: int = Field(32, ge=1, le=128, description="Points read per look-up.")
    tokens_per_lookup: int = Field(512, ge=1, description="Token ids that a look-up yields, at most.")
    refresh_tokens: int = Field(48, ge=1, description="Generated tokens between two look-ups.")
    tokens_per_point: int = Field(96, ge=1, le=1024, description="Long-tail token ids kept per point.")
    deadline_s: float = Field(0.5, gt=0, description="A look-up slower than this is dropped.")
    max_points: int = Field(20_000, ge=1, description="Oldest points are removed above this.")
    max_age_days: float = Field(30.0, gt=0, description="Points that nothing renewed for this long go.")

    @model_validator(mode="after")
    def _one_place(self) -> SemanticConfig:
        if self.url is not None and self.path is not None:
            raise ValueError("url names a server and path a folder for the embedded index: set only one")
        if self.url is None and (self.grpc_port is not None or self.ca_file is not None):
            raise ValueError("grpc_port and ca_file describe a server: set url as well")
        return self


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
    trace_buffer_mb: float = Field(16.0, gt=0, description="Unsent traces a replica may hold.")
    replay_mb: float = Field(256.0, gt=0, description="Traces the aligner keeps to learn from.")
    replay_clusters: int = Field(
        8,
        ge=1,
        le=64,
        description="Kinds of traffic that the replayed traces are shared out to, found by what the target's "
        "features look like: none can crowd out another. 1 keeps them all together.",
    )
    trace_features: Literal["bfloat16", "int8"] = Field(
        "bfloat16",
        description="How traces store features; `int8` with a scale per feature, in half the bytes.",
    )
    method: Literal["lora", "full-parameter"] = Field(
        "lora",
        description="What is trained: low-rank deltas, or all of the drafter's parameters, which takes far "
        "more memory and traffic and is there to compare with.",
    )
    rank: int = Field(16, ge=1, le=256, description="LoRA rank.")
    alpha: float = Field(
        32.0, gt=0, description="LoRA scale is alpha / rank, of `rslora` alpha / sqrt(rank)."
    )
    scaling: Literal["lora", "rslora"] = Field("lora", description="What alpha is divided by.")
    targets: Literal["layer", "mlp", "fusion-mlp", "all"] = Field(
        "layer",
        description="Linear layers that LoRA adapts: the decoder layer's, its MLP's, these and the fusion of "
        "the target's features, or all.",
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
    learning_rate: float = Field(2e-4, gt=0)
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


class RegistryConfig(Section):
    """Where adapter versions are published."""

    url: str | None = Field(
        None,
        repr=False,
        description="Redis or Valkey URL (redis://, rediss://, unix:// or redis+sentinel://); null embeds a "
        "Valkey server.",
    )
    replica_url: str | None = Field(
        None, repr=False, description="The same server as replicas reach it: with a user that only reads."
    )
    namespace: str = Field("evospec", min_length=1, pattern=r"^[A-Za-z0-9_.-]+$")
    poll_s: float = Field(1.0, gt=0, description="Replicas look for a new version this often, plus jitter.")
    keep_versions: int = Field(8, ge=2)
    signing_key: str | None = Field(None, repr=False, description="HMAC key for manifests.")
    max_blob_mb: float = Field(256.0, gt=0)

    @model_validator(mode="after")
    def _one_server(self) -> RegistryConfig:
        if self.replica_url is not None and self.url is None:
            raise ValueError("replica_url needs url: both name the same server")
        return self


class RolloutConfig(Section):
    """How a new adapter version reaches the replicas."""

    canary: bool = Field(
        True,
        description="Try each version on a share of the replicas before all run it. A single replica runs "
        "it at once.",
    )
    share: float = Field(0.25, gt=0, le=0.5, description="Share of the replicas in a canary; at least one.")
    error_rate: float = Field(
        0.01,
        gt=0,
        lt=0.5,
        description="Chance that a version as good as the stable one is revoked, however often one looks.",
    )
    speed_margin: float = Field(
        0.1,
        ge=0,
        lt=1,
        description="Loss in tokens/s per request that a canary may show: machines differ. Acceptance length "
        "has no such margin.",
    )
    min_requests: int = Field(8, ge=2, description="Requests on each side before a version is promoted.")
    soak_s: float = Field(20.0, ge=0, description="A version runs this long in its canary at least.")
    max_minutes: float = Field(
        30.0, gt=0, description="A version not shown to be worse in this time is promoted."
    )
    poll_s: float = Field(1.0, gt=0, description="Time between two looks at the replicas' counters.")


class ServeConfig(Section):
    """The HTTP endpoint and its replicas."""

    host: str = "127.0.0.1"
    port: int = Field(8000, ge=0, le=65535)
    replicas: int = Field(1, ge=1, le=1024)
    cpus_per_replica: float = Field(1.0, ge=0)
    gpus_per_replica: float = Field(0.0, ge=0)
    max_queued_requests: int = Field(256, ge=1, description="Waiting requests before 429 is answered.")
    model_name: str | None = Field(None, description="Name shown by /v1/models; default: model.target.")
    request_timeout_s: float = Field(600.0, gt=0)
    dashboard: bool = Field(False, description="Ray's dashboard of a local cluster, on 127.0.0.1:8265.")


class Config(Section):
    """The whole configuration: one YAML file, each key overridable by environment."""

    model: ModelConfig = ModelConfig()
    engine: EngineConfig = EngineConfig()
    vocabulary: VocabularyConfig = VocabularyConfig()
    semantic: SemanticConfig = SemanticConfig()
    alignment: AlignmentConfig = AlignmentConfig()
    registry: RegistryConfig = RegistryConfig()
    rollout: RolloutConfig = RolloutConfig()
    serve: ServeConfig = ServeConfig()
