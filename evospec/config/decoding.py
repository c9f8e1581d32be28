"""Settings of models and engines."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from evospec.config.section import Section


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
