"""The part that times heads and cycles at the true sizes of larger targets, with random weights.

Nothing that is accepted or said there means anything: only how long a cycle and its parts take.
"""

from __future__ import annotations

import numpy as np
import torch

from evospec.bench.decode import DecodeBench
from evospec.bench.measure import Batch
from evospec.bench.paper.decoding import measured
from evospec.bench.paper.lineup import EVOSPEC
from evospec.bench.paper.shapes import random_models
from evospec.bench.paper.work import Work
from evospec.bench.results import FULL, Results
from evospec.bench.settings import Lessons
from evospec.engine.request import Request, SamplingParams
from evospec.heap import release_heap
from evospec.models.loading import pick_device, pick_dtype

DOMAIN = "timing only"
FEW_ROWS = 4096  # what a dynamic vocabulary keeps active
_REQUESTS = 4
_PROMPT = 128


def time_shapes(work: Work, name: str) -> Results:
    """Raises OutOfTimeError: the part is given up."""
    settings = work.settings
    device = pick_device(settings.device)
    with work.console.status(f"making {name} of random numbers"):
        models = random_models(name, pick_dtype(settings.dtype, device), device)
    work.clock.check(0.0)
    policies = (FULL, f"fr-spec:{settings.statics[0]}", f"fr-spec:{FEW_ROWS}", EVOSPEC)
    decode = settings.decode(
        tuple(dict.fromkeys(policies)),
        target=name,
        drafter="random",
        prompts=(),
        max_tokens=settings.shape_tokens,
        profile=True,
        compare=False,
        chat=False,
        lessons=Lessons(),
    )
    batches = _random_batches(models.target.vocab_size, settings.shape_tokens)
    try:
        return measured(work, DecodeBench.over(decode, models, batches, skipped=0))
    finally:
        del models
        release_heap()
        if device.type == "cuda":
            torch.cuda.empty_cache()


def _random_batches(vocab_size: int, tokens: int) -> list[Batch]:
    numbers = np.random.default_rng(0)
    sampling = SamplingParams(max_tokens=tokens, ignore_eos=True)
    prompts = numbers.integers(vocab_size, size=(_REQUESTS, _PROMPT)).tolist()
    return [
        Batch(place, DOMAIN, (Request(f"random/{place}", tuple(ids), sampling),))
        for place, ids in enumerate(prompts)
    ]
