"""Draws the figures of docs/concepts.md.

`python infra/concept_figures.py` decodes prompts of three topics in turn with SmolLM2-135M, writes what each
cycle did to docs/figures/cycles.json, and draws it; `--drawn-only` draws what is there.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict, dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from evospec.bench.prompts import Prompt, read_prompts
from evospec.bench.style import COLOURS, MARKERS, NEUTRAL, legend_below, new_figure, save, tidy
from evospec.config import AlignmentConfig, Config, EngineConfig, ModelConfig, VocabularyConfig

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "docs" / "figures"
PROMPTS = ROOT / "services" / "demo" / "prompts.jsonl"
TARGET = "smollm2-135m"
TOPICS = ("code", "law", "medicine")
EACH, TOKENS = 3, 40
SOURCES = ("core", "context", "verification", "statistical", "semantic", "frequent")
WINDOW = 40  # tokens that the line of coverage is a mean of


@dataclass(frozen=True, slots=True)
class CycleRecord:
    """What a cycle left behind.

    Attributes:
        tokens: emitted so far, by all requests.
        rows: active ones, by source.
        covered, coverable: tokens of this cycle.
    """

    topic: str
    tokens: int
    rows: dict[str, int]
    covered: int
    coverable: int


@dataclass(frozen=True, slots=True)
class TopicRecord:
    """Drafts of a topic: position i was attempted where all before it were accepted."""

    topic: str
    attempted: list[int]
    accepted: list[int]


@dataclass(frozen=True, slots=True)
class Recorded:
    """A run."""

    cycles: list[CycleRecord]
    topics: list[TopicRecord]

    def to_json(self) -> str:
        return json.dumps({"schema": 1, "target": TARGET} | asdict(self)) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Recorded:
        content = json.loads(text)
        return cls(
            [CycleRecord(**one) for one in content["cycles"]],
            [TopicRecord(**one) for one in content["topics"]],
        )


def record(target: str, prompts: list[Prompt], **model: Any) -> Recorded:
    """Decodes one prompt after the other, each in chains of five."""
    from evospec.engine.build import load_engine
    from evospec.engine.counters import growth, snapshot
    from evospec.engine.request import Request, SamplingParams
    from evospec.engine.retrieval import RetrievalPump
    from evospec.models.chat import encode_prompt

    config = Config(
        model=ModelConfig(target=target, **model),
        engine=EngineConfig(max_batch=1, drafting="chain"),
        vocabulary=VocabularyConfig(),
        alignment=AlignmentConfig(enabled=False),
    )
    engine = load_engine(config)
    pump = RetrievalPump.in_memory(engine, config.semantic)
    cycles: list[CycleRecord] = []
    topics: list[TopicRecord] = []
    for topic, members in groupby(prompts, lambda one: one.domain):
        before = snapshot(engine.stats)
        for prompt in members:
            ids = encode_prompt(engine.target.tokenizer, prompt.text, chat=True)
            engine.admit(Request(prompt.id, ids, SamplingParams(max_tokens=TOKENS)))
            while engine.has_work:
                last = snapshot(engine.stats)
                engine.step()
                pump.run()
                stats = engine.stats
                gained = growth(last, stats)
                if gained.cycles:
                    rows = dict(stats.rows_by_source)
                    covered, coverable = gained.covered_tokens, gained.coverable_tokens
                    cycles.append(CycleRecord(topic, stats.emitted_tokens, rows, covered, coverable))
        drafts = growth(before, engine.stats)
        topics.append(TopicRecord(topic, drafts.attempted_per_position, drafts.accepted_per_position))
    return Recorded(cycles, topics)


def draw(recorded: Recorded, folder: Path) -> list[Path]:
    """rows.png and acceptance.png."""
    folder.mkdir(parents=True, exist_ok=True)
    return [
        save(_rows(recorded), folder / "rows.png"),
        save(_acceptance(recorded), folder / "acceptance.png"),
    ]


def _rows(recorded: Recorded) -> Figure:
    figure = new_figure(9.0, 5.6)
    rows, coverage = figure.subplots(2, 1, sharex=True, height_ratios=(2.2, 1))
    tokens = [one.tokens for one in recorded.cycles]
    layers = [[one.rows.get(source, 0) for one in recorded.cycles] for source in SOURCES]
    rows.stackplot(tokens, layers, labels=SOURCES, colors=COLOURS, alpha=0.85, step="post")
    rows.set_ylabel("Active rows, by source")
    coverage.plot(tokens, _means(recorded.cycles), color=COLOURS[0], linewidth=1.6)
    coverage.set_ylabel(f"Coverage,\nlast {WINDOW} tokens")
    coverage.set_ylim(0.6, 1.02)
    coverage.set_xlabel("Tokens generated")
    for axes in (rows, coverage):
        tidy(axes)
        axes.set_xlim(0, tokens[-1])
    _mark_topics(rows, coverage, recorded.cycles)
    legend_below(figure, len(SOURCES))
    return figure


def _mark_topics(rows: Axes, coverage: Axes, cycles: list[CycleRecord]) -> None:
    begin = 0
    for topic, members in groupby(cycles, lambda one: one.topic):
        end = list(members)[-1].tokens
        rows.text(begin + 4, 1.02, topic, transform=rows.get_xaxis_transform(), color="#333333")
        if begin:
            for axes in (rows, coverage):
                axes.axvline(begin, color=NEUTRAL, linestyle="--", linewidth=1.0)
        begin = end


def _means(cycles: list[CycleRecord]) -> list[float]:
    means = []
    for number in range(len(cycles)):
        covered = coverable = 0
        for one in reversed(cycles[: number + 1]):
            covered, coverable = covered + one.covered, coverable + one.coverable
            if coverable >= WINDOW:
                break
        means.append(covered / coverable if coverable else 1.0)
    return means


def _acceptance(recorded: Recorded) -> Figure:
    figure = new_figure(6.4, 4.2)
    axes = figure.subplots()
    for number, one in enumerate(recorded.topics):
        rates = [accepted / one.attempted[0] for accepted in one.accepted]
        tau = 1 + sum(rates)
        axes.plot(
            range(1, len(rates) + 1),
            rates,
            color=COLOURS[number],
            marker=MARKERS[number],
            label=f"{one.topic}: τ = {tau:.2f}",
        )
    axes.set_xlabel("Position in the draft")
    axes.set_ylabel("Drafts accepted up to here")
    axes.set_xticks(range(1, 6))
    axes.set_ylim(0, 1)
    tidy(axes)
    legend_below(figure, len(recorded.topics))
    return figure


def _prompts() -> list[Prompt]:
    every = read_prompts([PROMPTS])
    return [one for topic in TOPICS for one in [one for one in every if one.domain == topic][:EACH]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--drawn-only", action="store_true", help="draw what was recorded")
    file = FOLDER / "cycles.json"
    if not parser.parse_args().drawn_only:
        FOLDER.mkdir(parents=True, exist_ok=True)
        file.write_text(record(TARGET, _prompts()).to_json(), encoding="utf-8")
    for path in draw(Recorded.from_json(file.read_text(encoding="utf-8")), FOLDER):
        print(path.relative_to(ROOT))


if __name__ == "__main__":
    main()
