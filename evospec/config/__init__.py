"""Every setting of EvoSpec, typed, with its default and its bounds.

One frozen pydantic model per part. A wrong value is rejected when the config is
built, in one place; code below this file reads plain attributes.
"""

from __future__ import annotations

from pydantic import model_validator

from evospec.config.access import AccessConfig
from evospec.config.alignment import AlignmentConfig
from evospec.config.cluster import RegistryConfig, RolloutConfig, ServeConfig
from evospec.config.decoding import EngineConfig, ModelConfig
from evospec.config.models import ServedModel
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
    "ServedModel",
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
    models: tuple[ServedModel, ...] = ()

    @property
    def served_name(self) -> str:
        """Name of the model in the API, where it is the only one."""
        return self.serve.model_name or self.model.target

    def each_model(self) -> tuple[Config, ...]:
        """One configuration per model that is served: this one where `models` is empty.

        Raises:
            ValidationError: an entry does not fit the rest.
        """
        if not self.models:
            return (self,)
        values = self.model_dump()
        return tuple(Config.model_validate(model.over(values)) for model in self.models)

    @model_validator(mode="after")
    def _models_fit(self) -> Config:
        names = [model.name for model in self.models]
        twice = {name for name in names if names.count(name) > 1}
        if twice:
            raise ValueError(f"models: the name {min(twice)} is there more than once")
        if self.models:
            self.each_model()
        return self
