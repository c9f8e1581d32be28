"""EvoSpec whole and running, with a tiny random model: Ray Serve, registry, token index, aligner."""

from __future__ import annotations

from pathlib import Path

from evospec.config import (
    AlignmentConfig,
    Config,
    EngineConfig,
    ModelConfig,
    RegistryConfig,
    SemanticConfig,
    ServeConfig,
    VocabularyConfig,
)
from tests.tiny import tiny_folders

MODEL = "tiny"


def served_config(folder: Path) -> Config:
    """Any candidate passes its gate and reaches both replicas at once: versions shall be seen to move."""
    folders = tiny_folders(folder)
    return Config(
        model=ModelConfig(
            target=str(folders.target), drafter=str(folders.drafter), device="cpu", dtype="float32", threads=1
        ),
        engine=EngineConfig(max_batch=4, max_length=512, draft_length=3),
        vocabulary=VocabularyConfig(capacity=128, core=32, context_window=64),
        semantic=SemanticConfig(refresh_tokens=16),
        alignment=AlignmentConfig(
            trace_positions=32, min_traces=4, steps_per_version=2, steps_per_trace=0.5, min_gain=-10.0
        ),
        registry=RegistryConfig(poll_s=0.5),
        serve=ServeConfig(port=0, replicas=2, model_name=MODEL, max_queued_requests=8, log_format="json"),
    )
