"""`evospec vocab inspect`: what is active for a prompt, and why."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice

from rich.console import Console
from rich.table import Table
from transformers import PreTrainedTokenizerBase

from evospec.bench.prompts import Prompt
from evospec.config import Config
from evospec.engine.build import load_engine
from evospec.engine.engine import Engine
from evospec.engine.request import Request, SamplingParams
from evospec.engine.retrieval import RetrievalPump
from evospec.errors import EvoSpecError
from evospec.models.chat import encode_prompt
from evospec.vocab.active import ActiveSlot
from evospec.vocab.proposals import Origin


@dataclass(frozen=True, slots=True)
class ActiveToken:
    """A token that the drafter can propose.

    Attributes:
        score: None for the core, which always stays.
        pins: requests that hold it, the core counted as one.
    """

    token_id: int
    text: str
    source: str
    score: float | None
    pins: int


@dataclass(frozen=True, slots=True)
class VocabularyReport:
    """What is active after some tokens of an answer.

    Attributes:
        answer: what was generated until then.
        tokens: by source, each by falling score.
        covered: share of the answer's tokens that were active when they were decided.
    """

    prompt_tokens: int
    answer: str
    tokens: tuple[ActiveToken, ...]
    capacity: int
    covered: float

    def as_dict(self) -> dict[str, object]:
        return {
            "prompt_tokens": self.prompt_tokens,
            "answer": self.answer,
            "capacity": self.capacity,
            "covered": self.covered,
            "active": len(self.tokens),
            "by_source": self.by_source(),
            "tokens": [
                {
                    "id": token.token_id,
                    "text": token.text,
                    "source": token.source,
                    "score": token.score,
                    "pins": token.pins,
                }
                for token in self.tokens
            ],
        }

    def by_source(self) -> dict[str, int]:
        return dict(Counter(token.source for token in self.tokens))


def inspect_vocabulary(
    config: Config, prompt: str, warm: Sequence[Prompt], *, max_tokens: int, chat: bool
) -> VocabularyReport:
    """Answers `warm` prompts, so that indexes have something to say, then looks at `prompt`'s answer.

    Raises:
        EvoSpecError: the config's models can't be had, or its vocabulary never changes.
    """
    engine = load_engine(config)
    vocabulary = engine.vocabulary
    if vocabulary is None or not vocabulary.slots():
        raise EvoSpecError(
            f"{config.vocabulary.policy} never changes: inspect a dynamic policy, such as `evospec`"
        )
    pump = RetrievalPump.in_memory(engine, config.semantic)
    tokenizer = engine.target.tokenizer
    sampling = SamplingParams(max_tokens=max_tokens)
    _answer(
        engine,
        pump,
        [Request(each.id, encode_prompt(tokenizer, each.text, chat=chat), sampling) for each in warm],
    )
    before_covered, before = engine.stats.covered_tokens, engine.stats.coverable_tokens
    prompt_ids = encode_prompt(tokenizer, prompt, chat=chat)
    engine.admit(Request("inspected", prompt_ids, sampling))
    answer: list[int] = []
    slots: list[ActiveSlot] = []
    while engine.has_requests:
        if answer:
            slots = vocabulary.slots()  # while the request is running, and holds its tokens
        for output in engine.step():
            answer.extend(output.tokens)
        pump.run()
    coverable = engine.stats.coverable_tokens - before
    return VocabularyReport(
        prompt_tokens=len(prompt_ids),
        answer=str(tokenizer.decode(answer, skip_special_tokens=True)),
        tokens=_described(slots or vocabulary.slots(), tokenizer),
        capacity=config.vocabulary.capacity,
        covered=(engine.stats.covered_tokens - before_covered) / coverable if coverable else 1.0,
    )


def _answer(engine: Engine, pump: RetrievalPump, requests: Sequence[Request]) -> None:
    for request in requests:
        engine.admit(request)
    while engine.has_work:
        engine.step()
        pump.run()


def show_report(report: VocabularyReport, limit: int) -> None:
    """Prints a table of each source's best tokens."""
    console = Console()
    console.print(
        f"{len(report.tokens):,} of {report.capacity:,} rows active after {report.prompt_tokens} prompt "
        f"tokens and this answer, whose coverage was {report.covered:.3f}:",
        highlight=False,
    )
    console.print(report.answer, markup=False, highlight=False, style="dim")
    for source, count in report.by_source().items():
        table = Table(title=f"{source}: {count:,} tokens", title_justify="left")
        table.add_column("token", no_wrap=True)
        for heading in ("id", "score", "pins"):
            table.add_column(heading, justify="right")
        chosen = (token for token in report.tokens if token.source == source)
        for token in islice(chosen, limit):
            score = "always" if token.score is None else f"{token.score:.4f}"
            table.add_row(repr(token.text), str(token.token_id), score, str(token.pins))
        console.print(table)


def _described(slots: Sequence[ActiveSlot], tokenizer: PreTrainedTokenizerBase) -> tuple[ActiveToken, ...]:
    ordered = sorted(slots, key=lambda slot: (slot.origin, -slot.score, slot.token_id))
    return tuple(
        ActiveToken(
            token_id=slot.token_id,
            text=str(tokenizer.decode([slot.token_id])),
            source=Origin(slot.origin).name.lower(),
            score=slot.score if math.isfinite(slot.score) else None,
            pins=slot.pins,
        )
        for slot in ordered
    )
