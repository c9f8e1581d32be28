"""Several models behind one endpoint."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from evospec.config.alignment import AlignmentConfig
from evospec.config.cluster import RolloutConfig
from evospec.config.decoding import EngineConfig, ModelConfig
from evospec.config.section import Section
from evospec.config.vocabulary import SemanticConfig, VocabularyConfig


class ServedModel(Section):
    """Several models behind one endpoint: a list; requests name one. An entry's sections hold what differs
    from those of the whole file. Each model has replicas, aligner and token index of its own, and its
    versions are in `registry.namespace` with its name behind it.
    """

    name: str = Field(
        min_length=1, pattern=r"^[A-Za-z0-9_.-]+$", description="What requests and /v1/models call it."
    )
    replicas: int | None = Field(None, ge=1, le=1024, description="Above serve.replicas.")
    max_replicas: int | None = Field(None, ge=1, le=1024, description="Above serve.max_replicas.")
    model: ModelConfig | None = None
    engine: EngineConfig | None = None
    vocabulary: VocabularyConfig | None = None
    semantic: SemanticConfig | None = None
    alignment: AlignmentConfig | None = None
    rollout: RolloutConfig | None = None

    def over(self, values: dict[str, Any]) -> dict[str, Any]:
        """A configuration's values with this model's in place of them; those given are left alone."""
        own = self.model_dump(exclude_unset=True)
        merged: dict[str, Any] = {part: dict(keys) for part, keys in values.items() if part != "models"}
        for part in merged.keys() & own.keys():
            merged[part] |= own[part] or {}
        counts = {key: own[key] for key in ("replicas", "max_replicas") if own.get(key) is not None}
        merged["serve"] |= {"model_name": self.name, **counts}
        merged["registry"]["namespace"] += f".{self.name}"
        merged["semantic"]["collection"] += f"-{self.name}"
        if merged["semantic"]["path"] is not None:  # an embedded index has one owner
            merged["semantic"]["path"] += f"-{self.name}"
        return merged
