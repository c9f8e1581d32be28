"""Settings of the active rows and of what retrieves them."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from evospec.config.section import Section

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
        64,
        ge=0,
        description="Latest prompt positions whose best tokens are taken at prefill, "
        "shared by prompts that begin together.",
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
