"""EvoSpec whole and running, with a tiny random model: Ray Serve, registry, token index, aligner."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx

from evospec.config import (
    AlignmentConfig,
    Config,
    EngineConfig,
    ModelConfig,
    RegistryConfig,
    RolloutConfig,
    SemanticConfig,
    ServeConfig,
    VocabularyConfig,
)
from tests.tiny import tiny_folders

MODEL = "tiny"
TOPICS = ("def counter(start):", "the plaintiff moved to dismiss", "take 20 mg twice daily")


def served_config(folder: Path) -> Config:
    """Any candidate passes its gate and a canary of a few requests: versions shall be seen to move."""
    folders = tiny_folders(folder)
    return Config(
        model=ModelConfig(
            target=str(folders.target), drafter=str(folders.drafter), device="cpu", dtype="float32", threads=1
        ),
        engine=EngineConfig(max_batch=4, max_length=512, drafting="chain", draft_length=3),
        vocabulary=VocabularyConfig(capacity=128, core=32, context_window=64),
        semantic=SemanticConfig(refresh_tokens=16),
        alignment=AlignmentConfig(
            trace_positions=32, min_traces=4, steps_per_version=2, steps_per_trace=0.5, min_gain=-10.0
        ),
        registry=RegistryConfig(poll_s=0.5),
        rollout=RolloutConfig(
            error_rate=1e-6, speed_margin=0.99, min_requests=2, soak_s=1.0, max_minutes=0.2, poll_s=0.5
        ),
        serve=ServeConfig(
            port=0,
            replicas=2,
            cpus_per_replica=0.5,
            model_name=MODEL,
            max_queued_requests=8,
            log_format="json",
        ),
    )


@contextmanager
def traffic(url: str) -> Iterator[None]:
    """Requests of three topics, one after the other, meanwhile."""
    stopping = threading.Event()

    def send() -> None:
        number = 0
        with httpx.Client(base_url=url, timeout=120, trust_env=False) as client:
            while not stopping.is_set():
                body = {"model": MODEL, "prompt": f"{TOPICS[number % 3]} {number}", "max_tokens": 40}
                client.post("/v1/completions", json={**body, "temperature": 0, "ignore_eos": True})
                number += 1

    thread = threading.Thread(target=send, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stopping.set()
        thread.join(120)
