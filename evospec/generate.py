"""`evospec generate`: prompts in, text out, in this process."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from time import perf_counter

from evospec.bench.prompts import Prompt, read_prompts
from evospec.bench.results import PLAIN
from evospec.config import AlignmentConfig, Config, EngineConfig, ModelConfig, VocabularyConfig
from evospec.engine.build import load_engine
from evospec.engine.counters import growth, snapshot
from evospec.engine.engine import Engine
from evospec.engine.request import FinishReason, Request, SamplingParams
from evospec.engine.retrieval import RetrievalPump
from evospec.engine.text import TextStream
from evospec.errors import EvoSpecError
from evospec.models.chat import encode_prompt
from evospec.models.loading import DeviceSetting, DtypeSetting
from evospec.vocab.policy_name import PolicyName

Show = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Generated:
    """An answer and how it was decoded; seconds include prompt processing."""

    id: str
    text: str
    token_ids: tuple[int, ...]
    finish_reason: FinishReason
    prompt_tokens: int
    tokens: int
    cycles: int
    seconds: float
    tokens_per_s: float
    acceptance_length: float
    active_rows: int
    coverage: float

    def as_dict(self) -> dict[str, object]:
        return asdict(self)

    def summary(self) -> str:
        return (
            f"{self.tokens} tokens in {self.seconds:.1f} s: {self.tokens_per_s:.1f} tokens/s, "
            f"acceptance length {self.acceptance_length:.2f}, {self.active_rows:,} active rows, "
            f"coverage {self.coverage:.3f}"
        )


def read_input(prompt: str | None, prompt_file: str | None) -> list[Prompt]:
    """The prompts to answer.

    Args:
        prompt_file: a text file, `-` for standard input, or JSON lines (.jsonl).

    Raises:
        EvoSpecError: none or both are given, or the file is not usable.
    """
    if prompt is not None and prompt_file is None:
        return [Prompt("prompt", "", prompt)]
    if prompt_file is None or prompt is not None:
        raise EvoSpecError("give either --prompt TEXT or --prompt-file FILE")
    if prompt_file == "-":
        return [Prompt("stdin", "", sys.stdin.read())]
    path = Path(prompt_file)
    if path.suffix == ".jsonl":
        return read_prompts([path])
    try:
        return [Prompt(path.name, "", path.read_text(encoding="utf-8"))]
    except (OSError, UnicodeDecodeError) as error:
        raise EvoSpecError(f"cannot read prompt file {path}: {error}") from None


def generate_config(
    *, target: str, drafter: str, policy: str, device: DeviceSetting, dtype: DtypeSetting, threads: int
) -> Config:
    """One request at a time, without traces. Raises EvoSpecError on an unknown policy."""
    plain = policy == PLAIN
    if not plain:
        PolicyName.parse(policy)  # before models are loaded
    return Config(
        model=ModelConfig(
            target=target,
            drafter=None if plain else drafter,
            device=device,
            dtype=dtype,
            threads=threads,
        ),
        engine=EngineConfig(max_batch=1),
        vocabulary=VocabularyConfig() if plain else VocabularyConfig(policy=policy),
        alignment=AlignmentConfig(enabled=False),
    )


class Generator:
    """Answers prompts one after the other; the vocabulary keeps what earlier ones taught it.

    Raises:
        EvoSpecError: the config's models can't be had.
    """

    def __init__(self, config: Config, *, chat: bool) -> None:
        self._engine = load_engine(config)
        self._retrieval = RetrievalPump.in_memory(self._engine, config.semantic)
        self._chat = chat

    def run(self, prompt: Prompt, sampling: SamplingParams, show: Show) -> Generated:
        """Streams the answer's text to `show`.

        Raises:
            InvalidRequestError: the prompt does not fit.
            UnsupportedModelError: a chat is asked of a model without a chat template.
        """
        engine: Engine = self._engine
        prompt_ids = encode_prompt(engine.target.tokenizer, prompt.text, chat=self._chat)
        before = snapshot(engine.stats)
        began = perf_counter()
        engine.admit(Request(prompt.id, prompt_ids, sampling))
        text = _Text(TextStream(engine.target.tokenizer), show)
        tokens: list[int] = []
        finish: FinishReason = "stop"
        while engine.has_requests:
            for output in engine.step():
                tokens.extend(output.tokens)
                text.push(output.tokens)
                finish = output.finish_reason or finish
            self._retrieval.run()
        text.finish()
        seconds = perf_counter() - began
        while engine.has_work:  # what is left to learn, for prompts to come
            engine.step()
            self._retrieval.run()
        counters = growth(before, engine.stats)
        return Generated(
            id=prompt.id,
            text=text.whole,
            token_ids=tuple(tokens),
            finish_reason=finish,
            prompt_tokens=len(prompt_ids),
            tokens=len(tokens),
            cycles=counters.cycles,
            seconds=seconds,
            tokens_per_s=len(tokens) / seconds,
            acceptance_length=counters.acceptance_length,
            active_rows=counters.active_rows if engine.drafter is not None else 0,
            coverage=counters.coverage if engine.drafter is not None else 0.0,
        )


@dataclass(slots=True)
class _Text:
    """Shows text as it settles and keeps all of it."""

    stream: TextStream
    show: Show
    whole: str = ""

    def push(self, tokens: Sequence[int]) -> None:
        self._add(self.stream.push(tokens).text)

    def finish(self) -> None:
        self._add(self.stream.finish().text)

    def _add(self, text: str) -> None:
        if text:
            self.whole += text
            self.show(text)
