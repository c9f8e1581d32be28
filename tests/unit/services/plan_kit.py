"""Questions to a plan."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

from services.plan.accelerators import ACCELERATORS
from services.plan.question import Hardware, Load, Question
from services.plan.shapes import SHAPES

REFERENCE = SHAPES["qwen2.5-coder-0.5b"]


def question(
    rate: float = 50.0, prompt: float = 400.0, answer: float = 200.0, model: str = REFERENCE.name, **more: Any
) -> Question:
    return Question(Load(rate, prompt, answer), SHAPES[model], **more)


def questions() -> st.SearchStrategy[Question]:
    """Loads of any size, on GPUs that bear the model."""
    return st.builds(
        lambda rate, prompt, answer, burstiness, model, gpu, acceptance, traced, batch: Question(
            Load(rate, prompt, answer, burstiness),
            SHAPES[model],
            Hardware(gpu=ACCELERATORS[gpu]),
            acceptance=acceptance,
            traced=traced,
            batch=batch,
        ),
        rate=st.floats(0.01, 20_000),
        prompt=st.floats(1, 1500),
        answer=st.floats(1, 500),
        burstiness=st.floats(0.1, 20),
        model=st.sampled_from(["smollm2-135m", "qwen2.5-coder-0.5b", "llama-3-8b"]),
        gpu=st.sampled_from(["h200", "h100", "a100", "l40s"]),
        acceptance=st.floats(1, 6),
        traced=st.floats(0, 1),
        batch=st.sampled_from([None, 1, 8, 32]),
    )
