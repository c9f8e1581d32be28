"""`evospec bench memory`: what updates take of each arm, at the shapes of a target, without its weights."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from pydantic import JsonValue

from evospec.align.build import trace_limits
from evospec.align.trace import Trace
from evospec.align.trainer import AlignmentTrainer
from evospec.bench.adapted_arm import UpdateLog
from evospec.bench.align_arms import AlignArm, parse_align_arms
from evospec.bench.align_records import UpdateCosts
from evospec.bench.arms import ArmError
from evospec.bench.live_bytes import ExtraMemory
from evospec.bench.machine import describe_machine, git_commit
from evospec.bench.results import Results
from evospec.config import Config
from evospec.models.drafter import Drafter, DrafterConfig
from evospec.models.loading import DeviceSetting, DtypeSetting, pick_device, pick_dtype
from evospec.models.tables import TokenTables
from evospec.vocab.tenants import tenant_key
from evospec.wire import Fingerprints

PAST = 512  # positions before each trace, if its config lets it bring so many
_TAPS = (0, 1, 2)
_POLICY = "full"  # nothing is decoded
_NAMES = Fingerprints(target="random", drafter="random", tokenizer="random")


@dataclass(frozen=True, slots=True)
class Shape:
    """Sizes of a target that decide what its drafter's updates cost."""

    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab: int


SHAPES: Mapping[str, Shape] = {
    "smollm2-135m": Shape(576, 1536, 9, 3, 64, 49_152),
    "qwen2.5-coder-0.5b": Shape(896, 4864, 14, 2, 64, 151_936),
    "qwen2.5-coder-1.5b": Shape(1536, 8960, 12, 2, 128, 151_936),
    "llama-3-8b": Shape(4096, 14_336, 32, 8, 128, 128_256),
    "gemma-3-27b": Shape(5376, 21_504, 32, 16, 128, 262_208),
}


@dataclass(frozen=True, slots=True)
class MemorySettings:
    """What to run.

    Attributes:
        shapes: of a target, as SHAPES names them.
        traces: that an update draws its batches from, of `trace_positions` each; so many for each adapter.
        updates: per arm; each is `steps` steps, a gate and a new version.
    """

    shapes: str
    arms: tuple[str, ...]
    device: DeviceSetting = "auto"
    dtype: DtypeSetting = "auto"
    threads: int = 0
    traces: int = 24
    updates: int = 3
    steps: int = 4

    def described(self) -> dict[str, JsonValue]:
        return {
            "shapes": self.shapes,
            "arms": list(self.arms),
            "traces": self.traces,
            "updates": self.updates,
            "steps": self.steps,
        }


def shape_of(name: str) -> Shape:
    """Raises ArmError naming the shapes that there are."""
    if name not in SHAPES:
        raise ArmError(f"unknown shapes {name!r}: choose one of {', '.join(SHAPES)}")
    return SHAPES[name]


def measure_updates(settings: MemorySettings, done: Callable[[UpdateCosts], None]) -> Results:
    """Runs the arms one after the other, on random weights and traces.

    Args:
        done: is shown each arm's costs.

    Raises:
        EvoSpecError: an arm or shape that there isn't.
    """
    shape = shape_of(settings.shapes)
    arms = [arm for arm in parse_align_arms(settings.arms, _POLICY) if arm.adapts]
    device = pick_device(settings.device)
    dtype = pick_dtype(settings.dtype, device)
    if settings.threads:
        torch.set_num_threads(settings.threads)
    tables = random_tables(shape, dtype, device)
    measured: list[UpdateCosts] = []
    for arm in arms:
        measured.append(_measure(arm, shape, tables, settings))
        done(measured[-1])
    described = settings.described() | {
        "device": device.type,
        "dtype": str(dtype).removeprefix("torch."),
    }
    return Results(
        machine=describe_machine(), git=git_commit(), settings=described, runs=(), updates=tuple(measured)
    )


def random_tables(shape: Shape, dtype: torch.dtype, device: torch.device) -> TokenTables:
    generator = torch.Generator(device).manual_seed(0)
    rows = torch.randn(shape.vocab, shape.hidden, generator=generator, device=device, dtype=dtype)
    rows *= shape.hidden**-0.5
    return TokenTables(embedding=rows, head=rows)


def random_drafter(shape: Shape, positions: int, device: torch.device) -> Drafter:
    """As `evospec train` would make it for such a target, but untrained."""
    config = DrafterConfig(
        hidden_size=shape.hidden,
        intermediate_size=shape.intermediate,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        head_dim=shape.head_dim,
        vocab_size=shape.vocab,
        tap_layers=_TAPS,
        max_positions=positions,
    )
    with torch.device(device):
        return Drafter(config).requires_grad_(False)


def random_traces(arm: AlignArm, shape: Shape, count: int) -> Iterator[Trace]:
    """Windows as wide as the arm's config allows, behind `PAST` positions; each third token was rejected.

    Token ids follow Zipf's law, so that the rows of a batch are about as many as text has.
    """
    width, top_k = arm.config.trace_positions, arm.config.trace_top_k
    rng = np.random.default_rng(0)
    place, past = np.arange(width), _past(arm)
    for number in range(count):
        features = rng.standard_normal((width, len(_TAPS) * shape.hidden), dtype=np.float32)
        logprobs = np.sort(rng.dirichlet(np.ones(top_k + 1), width)[:, :top_k])[:, ::-1]
        first = (shape.vocab - top_k) ** rng.random(width) - 1  # log-uniform: Zipf's law
        yield Trace(
            fingerprints=_NAMES,
            adapter_version=0,
            vocabulary_epoch=0,
            tenant=tenant_key(""),
            prompt_length=past + width // 4,
            start=past,
            token_ids=(shape.vocab ** rng.random(width + 1) - 1).astype(np.int32),
            features=_bfloat16(features),
            top_ids=(first.astype(np.int32)[:, None] + np.arange(top_k, dtype=np.int32)),
            top_logprobs=np.log(logprobs.clip(1e-7)).astype(np.float16),
            generated=place >= width // 4,
            draft_position=(place % 3).astype(np.int8),
            accepted=place % 3 < 2,
            missed=np.zeros(width, dtype=bool),
            past=_bfloat16(rng.standard_normal((2, shape.kv_heads, past, shape.head_dim), dtype=np.float32)),
            context=_context(rng, shape, number % max(arm.config.adapters, 1)),
        )


def _context(rng: np.random.Generator, shape: Shape, kind: int) -> np.ndarray:
    """Near the direction of a kind of traffic."""
    direction = np.random.default_rng(kind).standard_normal(shape.hidden, dtype=np.float32)
    context = direction + 0.2 * rng.standard_normal(shape.hidden, dtype=np.float32)
    return _bfloat16(context / np.linalg.norm(context))


def _past(arm: AlignArm) -> int:
    return min(PAST, arm.config.trace_past)


def _bfloat16(numbers: np.ndarray) -> np.ndarray:
    """Bit patterns of float32 numbers, uint16."""
    bits: np.ndarray = (numbers.view(np.uint32) >> 16).astype(np.uint16)
    return bits


def _measure(arm: AlignArm, shape: Shape, tables: TokenTables, settings: MemorySettings) -> UpdateCosts:
    config = Config(alignment=arm.config)
    device = tables.head.device
    steps = max(config.engine.draft_length, arm.config.test_time_steps)
    reach = _past(arm) + arm.config.trace_positions + steps
    drafter = random_drafter(shape, reach, device)
    log = UpdateLog(ExtraMemory(device))
    with log.memory.watch():
        trainer = AlignmentTrainer(
            arm.config,
            drafter,
            tables,
            torch.arange(min(config.vocabulary.core, shape.vocab)),
            trace_limits(arm.config, drafter, _NAMES),
            draft_length=config.engine.draft_length,
        )
        for trace in random_traces(arm, shape, settings.traces * max(arm.config.adapters, 1)):
            trainer.add(trace)
            log.admitted += 1
    for number in range(settings.updates):
        with log.update():
            for _ in range(settings.steps):
                log.step_seconds.append(trainer.step().seconds)
            report = trainer.gate() if arm.gated else None
            trainer.candidate(number + 1, report)
            trainer.accept()
        log.published += 1
    return log.costs(arm.text, trainer)
