"""Every setting of EvoSpec, typed, with its default and its bounds.

One frozen pydantic model per part. A wrong value is rejected when the config is
built, in one place; code below this file reads plain attributes.
"""

from __future__ import annotations

from evospec.config.access import AccessConfig
from evospec.config.alignment import AlignmentConfig
from evospec.config.cluster import RegistryConfig, RolloutConfig, ServeConfig
from evospec.config.decoding import EngineConfig, ModelConfig
from evospec.config.section import Section
from evospec.config.vocabulary import SemanticConfig, SourceName, VocabularyConfig

__all__ = [
    "AccessConfig",
    "AlignmentConfig",
    "Config",
    "EngineConfig",
    "ModelConfig",
    "RegistryConfig",
    "RolloutConfig",
    "Section",
    "SemanticConfig",
    "ServeConfig",
    "SourceName",
    "VocabularyConfig",
]


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
    access: AccessConfig = AccessConfig()
