"""What the paper bench is asked to run."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path

from pydantic import JsonValue

from evospec.bench.results import shown_name
from evospec.bench.settings import DecodeSettings, Lessons
from evospec.config import VocabularyConfig
from evospec.models.loading import DeviceSetting, DtypeSetting

EVAL, ADAPT = "eval", "adapt"  # splits: what is reported on, and what is learned from
ALIGN = "full-parameter:positions=all:adapters=4:publish_rank=128:blend=1"
ALIGNED, LORA, ONLINE = (
    "aligned",
    "lora",
    "online",
)  # names of what is learned, as arms have them: evospec+lora


@dataclass(frozen=True, slots=True)
class Learner:
    """A way to adapt; `arm` is written as for `bench stream --arms`."""

    name: str
    arm: str


# `aligned` is EvoSpec's own, `online` standard online adaptation: every parameter, the whole vocabulary.
LEARNERS = (Learner(ALIGNED, ALIGN), Learner(LORA, "lora"), Learner(ONLINE, "full-parameter+full-loss"))


@dataclass(frozen=True, slots=True)
class Learning:
    """The stream that drafters learn from: so many requests of each topic in turn, from split `adapt`.

    Attributes:
        every: requests of a topic before the next one; `rounds`: how often each comes.
        batch: requests decoded together.
    """

    learners: tuple[Learner, ...] = LEARNERS
    every: int = 64
    rounds: int = 2
    batch: int = 8
    max_tokens: int = 160


@dataclass(frozen=True, slots=True)
class PaperSettings:
    """What to run; the defaults are for a GPU.

    Attributes:
        limit: `eval` prompts per domain in the headline part.
        few: the same at temperature 1, and with trees.
        peers: the same for transformers' own generation.
        lessons: `adapt` prompts per domain that policies decode before anything counts.
        statics: sizes of FR-Spec's list; the first is what ratios are to.
        batches: sizes measured besides 1, with as many prompts per domain as the largest has.
        every, rounds: of the stream whose topic switches.
        shapes: targets with random weights to time, as `shapes.SHAPES` names them.
        memory_shapes: as `bench memory` names them; None: the target's own name, if it is one.
        memory_updates, memory_steps: updates per arm, and steps of each.
    """

    target: str
    prompts: tuple[Path, ...]
    drafter: str = "default"
    limit: int = 16
    few: int = 8
    peers: int = 2
    lessons: int = 16
    max_tokens: int = 256
    draft_length: int = 5
    statics: tuple[int, ...] = (32_768, 16_384, 8_192, 4_096)
    batches: tuple[int, ...] = (8, 32)
    every: int = 4
    rounds: int = 2
    learning: Learning = Learning()
    shapes: tuple[str, ...] = ("llama-3-8b", "qwen2.5-7b", "gemma-3-27b")
    shape_tokens: int = 64
    memory_shapes: str | None = None
    memory_updates: int = 3
    memory_steps: int = 4
    device: DeviceSetting = "auto"
    dtype: DtypeSetting = "auto"
    threads: int = 0
    seed: int = 0
    chat: bool = True
    vocabulary: VocabularyConfig = field(default_factory=VocabularyConfig)

    def quick(self) -> PaperSettings:
        """The same at a size that a CPU gets through in some minutes; its figures show only that it works."""
        learning = replace(self.learning, every=8, rounds=2, batch=4, max_tokens=24)
        return replace(
            self,
            limit=2,
            few=1,
            peers=1,
            lessons=2,
            max_tokens=32,
            statics=(self.statics[0], 8_192),
            batches=(4,),
            every=1,
            rounds=2,
            learning=learning,
            shapes=("tiny",),
            shape_tokens=16,
            memory_updates=1,
            memory_steps=1,
        )

    def decode(self, policies: tuple[str, ...], **changes: object) -> DecodeSettings:
        """A decode bench of these models and prompts; arms draft chains, and learners have had lessons."""
        usual = DecodeSettings(
            target=self.target,
            prompts=self.prompts,
            drafter=self.drafter,
            split=EVAL,
            limit=self.limit,
            policies=policies,
            drafting="chain",
            device=self.device,
            dtype=self.dtype,
            threads=self.threads,
            max_tokens=self.max_tokens,
            draft_length=self.draft_length,
            seed=self.seed,
            chat=self.chat,
            profile=False,
            upkeep=False,
            vocabulary=self.vocabulary,
            lessons=Lessons(self.prompts, ADAPT, self.lessons) if self.lessons else Lessons(),
        )
        return replace(usual, **changes)  # type: ignore[arg-type]

    def described(self) -> dict[str, JsonValue]:
        """For result files and the fingerprint: names, no folders."""
        return {
            "target": shown_name(self.target),
            "drafter": shown_name(self.drafter),
            "prompts": [file.name for file in self.prompts],
            "limit": self.limit,
            "few": self.few,
            "peers": self.peers,
            "lessons": self.lessons,
            "max_tokens": self.max_tokens,
            "draft_length": self.draft_length,
            "statics": list(self.statics),
            "batches": list(self.batches),
            "every": self.every,
            "rounds": self.rounds,
            "learners": [f"{one.name}={one.arm}" for one in self.learning.learners],
            "learn_every": self.learning.every,
            "learn_rounds": self.learning.rounds,
            "learn_batch": self.learning.batch,
            "learn_max_tokens": self.learning.max_tokens,
            "shapes": list(self.shapes),
            "memory_shapes": self.memory_shapes,
            "device": self.device,
            "dtype": self.dtype,
            "threads": self.threads,
            "seed": self.seed,
            "chat": self.chat,
            "capacity": self.vocabulary.capacity,
            "core": self.vocabulary.core,
        }
