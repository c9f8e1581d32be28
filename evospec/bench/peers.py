"""Peers: transformers' own generation, over the very weights that our engine decodes with."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    GenerationConfig,
    PreTrainedModel,
    StaticCache,
    StoppingCriteria,
    StoppingCriteriaList,
)

from evospec.bench.arms import ArmName
from evospec.bench.clock import Clock
from evospec.bench.measure import Batch, Turn
from evospec.bench.memory import PeakMemory
from evospec.engine.stats import EngineStats
from evospec.errors import EvoSpecError
from evospec.models.loading import load_model, load_tokenizer, resolve_target
from evospec.models.target import Target

_LOOKUP_TOKENS = 10  # transformers' documented choice for prompt look-up


def twin(model: PreTrainedModel) -> PreTrainedModel:
    """The same model with transformers' own attention; every weight and buffer is shared."""
    config = copy.deepcopy(model.config)
    with torch.device("meta"):
        bare: PreTrainedModel = AutoModelForCausalLM.from_config(
            config, attn_implementation="sdpa", dtype=model.dtype
        )
    for source, target in zip(model.modules(), bare.modules(), strict=True):
        for name, parameter in source.named_parameters(recurse=False):
            setattr(target, name, parameter)
        for name, buffer in source.named_buffers(recurse=False):
            setattr(target, name, buffer)
    return bare.eval()


def load_assistant(name: str, target: Target) -> PreTrainedModel:
    """A smaller model that drafts for transformers' assisted generation.

    Raises:
        ModelNotFoundError, UnsupportedModelError: it can't be loaded.
        EvoSpecError: its tokens are not the target's.
    """
    model = load_model(resolve_target(name), target.dtype, target.device)
    same = load_tokenizer(name).get_vocab() == target.tokenizer.get_vocab()
    if not same or model.config.vocab_size != target.vocab_size:
        raise EvoSpecError(
            f"assistant {name} does not share the target's tokenizer: choose a smaller model of its family"
        )
    return model


class _Passes(StoppingCriteria):
    """Stops nothing; sees when each pass of the target is done."""

    def __init__(self, clock: Clock, prompt_length: int) -> None:
        self._clock = clock
        self._prompt_length = prompt_length
        self.count = 0
        self.contexts = 0  # tokens known before each pass but the first, summed
        self.first_seconds = 0.0
        self.first_length = 0
        self._known = prompt_length

    def __call__(self, input_ids: Tensor, scores: object, **_: object) -> Tensor:
        if self.count == 0:
            self.first_seconds = self._clock.read().wall
            self.first_length = input_ids.shape[1] - self._prompt_length
        else:
            self.contexts += self._known
        self.count += 1
        self._known = input_ids.shape[1]
        return torch.zeros(input_ids.shape[0], dtype=torch.bool, device=input_ids.device)


@dataclass(slots=True)
class PeerArm:
    """`generate` in one of its modes, greedy.

    Attributes:
        model: from `twin`; peers may share it.
        positions: of the static cache.
        assistant: for assisted generation.
    """

    name: ArmName
    model: PreTrainedModel
    eos_ids: frozenset[int]
    positions: int
    assistant: PreTrainedModel | None = None
    _caches: dict[int, StaticCache] = field(default_factory=dict)

    def run(self, batch: Batch, memory: PeakMemory) -> Turn:
        clock = Clock(memory.device)
        longest = max(len(request.prompt_ids) for request in batch.requests)
        passes = _Passes(clock, longest)
        memory.restart()
        clock.start()
        produced = self._generate(batch, longest, passes)
        elapsed = clock.read()
        outputs = tuple(self._kept(row) for row in produced)
        rows, cycles = len(batch.requests), passes.count - 1
        tokens = sum(len(output) for output in outputs)
        first = sum(min(passes.first_length, len(output)) for output in outputs)
        counters = EngineStats(
            cycles=cycles,
            emitted_tokens=tokens,
            prompt_tokens=sum(len(request.prompt_ids) for request in batch.requests),
            verify_seconds=elapsed.wall - passes.first_seconds,
            prefill_seconds=passes.first_seconds,
        )
        request_cycles = min(rows * cycles, tokens - first)
        counters.drafts, counters.accepted_tokens = request_cycles, tokens - first - request_cycles
        return Turn(
            arm=self.name.text,
            batch=batch,
            outputs=outputs,
            elapsed=elapsed,
            prompt_seconds=passes.first_seconds,
            first_token_seconds=(passes.first_seconds,) * rows,
            last_token_seconds=(elapsed.wall,) * rows,
            first_tokens=first,
            counters=counters,
            row_cycles=0,
            request_cycles=request_cycles,
            key_cycles=passes.contexts * rows,
            peak_memory_mb=memory.read_mb(),
            transient_mb=memory.transient_mb(),
        )

    def _generate(self, batch: Batch, longest: int, passes: _Passes) -> list[list[int]]:
        """Tokens after the prompts, padded on the left to the longest."""
        pad = min(self.eos_ids, default=0)
        prompts = [each.prompt_ids for each in batch.requests]
        rows = [[pad] * (longest - len(prompt)) + list(prompt) for prompt in prompts]
        seen = [[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts]
        device = self.model.device
        model: Any = self.model  # transformers types `generate` as a module
        generated = model.generate(
            torch.tensor(rows, device=device),
            attention_mask=torch.tensor(seen, device=device),
            generation_config=self._config(batch, pad),
            stopping_criteria=StoppingCriteriaList([passes]),
            **self._mode(len(rows)),
        )
        tokens: list[list[int]] = generated[:, longest:].tolist()
        return tokens

    def _config(self, batch: Batch, pad: int) -> GenerationConfig:
        lookup = _LOOKUP_TOKENS if self.name.peer == "prompt-lookup" else None
        return GenerationConfig(
            max_new_tokens=max(request.sampling.max_tokens for request in batch.requests),
            do_sample=False,
            eos_token_id=sorted(self.eos_ids) or None,
            pad_token_id=pad,
            prompt_lookup_num_tokens=lookup,
        )

    def _mode(self, rows: int) -> dict[str, object]:
        if self.name.peer == "assisted":
            return {"assistant_model": self.assistant}
        if self.name.peer != "static":
            return {}
        cache = self._caches.get(rows)
        if cache is None:  # one size for all prompts: `generate` compiles for a cache, on CUDA only
            cache = StaticCache(config=self.model.config, max_cache_len=self.positions)
            self._caches[rows] = cache
        else:
            cache.reset()
        return {"past_key_values": cache}

    def _kept(self, tokens: Sequence[int]) -> tuple[int, ...]:
        """Up to the first end-of-sequence token: what follows pads to the longest of the batch."""
        for place, token in enumerate(tokens):
            if token in self.eos_ids:
                return tuple(tokens[: place + 1])
        return tuple(tokens)
