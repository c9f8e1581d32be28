"""What to do when memory runs out, in one line: the option to lower, and to what."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

from evospec.errors import EvoSpecError
from evospec.models.drafter import DrafterConfig
from evospec.training.plan import TrainingPlan

# How PyTorch's CPU allocator, which has no exception of its own, begins its message.
_CPU_ALLOCATOR = "DefaultCPUAllocator"
_LOGIT_COPIES = 5  # float32 tensors over the vocabulary alive at once in the loss
_HIDDEN_COPIES = 24  # hidden-sized activations that autograd keeps per position and draft step
_SMALLEST_BATCH, _SMALLEST_LOGITS = 256, 64


class OutOfMemoryError(EvoSpecError):
    """The device or the host has too little memory for a setting."""


@contextmanager
def memory_errors(advice: Callable[[], str]) -> Iterator[None]:
    """Turns PyTorch's out-of-memory errors into one line that ends in the advice.

    Raises:
        OutOfMemoryError: in their place; other errors pass.
    """
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError) as error:
        raise OutOfMemoryError(_line(error, advice())) from None
    except RuntimeError as error:
        if _CPU_ALLOCATOR not in str(error):
            raise
        raise OutOfMemoryError(_line(error, advice())) from None


def training_advice(plan: TrainingPlan, config: DrafterConfig) -> str:
    """Which option to halve: the one whose tensors are larger, by a rough count of those alive."""
    logits = 4 * _LOGIT_COPIES * plan.logit_tokens * config.vocab_size
    states = 4 * _HIDDEN_COPIES * plan.tokens_per_batch * plan.steps * config.hidden_size
    if logits >= states and plan.logit_tokens > _SMALLEST_LOGITS:
        return f"lower --logit-tokens to {max(plan.logit_tokens // 2, _SMALLEST_LOGITS)} and use --resume"
    if plan.tokens_per_batch > _SMALLEST_BATCH:
        return f"lower --batch-tokens to {max(plan.tokens_per_batch // 2, _SMALLEST_BATCH)}"
    return "free memory: the settings are as small as they can be"


def rollout_advice(rows: int) -> str:
    """What to lower when the target has no room to write."""
    return f"lower --rows to {rows // 2}" if rows > 1 else "free memory: --rows is 1 already"


def _line(error: BaseException, advice: str) -> str:
    first = str(error).strip().splitlines()[0] if str(error).strip() else "out of memory"
    return f"out of memory: {advice} ({first[:160]})"
