"""`evospec train`: options, progress on screen, and a summary that says how good the drafter is."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from time import monotonic
from typing import Annotated, Literal

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from evospec.bench.machine import describe_machine, git_commit
from evospec.config import Config, ModelConfig
from evospec.engine.build import load_target
from evospec.errors import EvoSpecError
from evospec.training.corpus import Corpus
from evospec.training.data import read_training_data
from evospec.training.pipeline import TrainingReport, prepare_corpus, train_drafter
from evospec.training.rollout import RolloutPlan
from evospec.training.trainer import Progress as TrainingProgress
from evospec.training.trainer import TrainingPlan

Report = Callable[[float, str], None]  # share done, and what to say beside it

LINE_S = 10.0
# Share of --minutes that goes into writing the corpus; the rest trains.
_CORPUS_SHARE = 0.4


def train(
    target: Annotated[
        str, typer.Option(help="Model to train a drafter for: name, folder, GGUF file or Hub id.")
    ],
    out: Annotated[Path, typer.Option(help="Folder of the finished drafter.")],
    data: Annotated[
        list[Path] | None, typer.Option(help="JSON lines with a `prompt` each, for the target to answer.")
    ] = None,
    split: Annotated[str | None, typer.Option(help="Use only lines with this `split`.")] = None,
    minutes: Annotated[float, typer.Option(min=0.1, help="Time for text and training together.")] = 10.0,
    device: Annotated[Literal["auto", "cpu", "cuda"], typer.Option(help="Where to train.")] = "auto",
    dtype: Annotated[
        Literal["auto", "float32", "bfloat16"], typer.Option(help="Number format of the target.")
    ] = "auto",
    corpus: Annotated[
        Path | None, typer.Option(help="Folder of the corpus: read when it holds one, else written there.")
    ] = None,
    corpus_minutes: Annotated[
        float | None, typer.Option(min=0.05, help="Time for text; default: 40 % of --minutes.")
    ] = None,
    rows: Annotated[int | None, typer.Option(min=1, help="Conversations written at once.")] = None,
    answer_tokens: Annotated[int, typer.Option(min=16, help="Longest answer in the corpus.")] = 384,
    steps: Annotated[int, typer.Option(min=1, max=16, help="Draft steps unrolled in training.")] = 5,
    batch_tokens: Annotated[int | None, typer.Option(min=256, help="Tokens per optimiser step.")] = None,
    learning_rate: Annotated[float, typer.Option(min=1e-6)] = 1e-3,
    seed: Annotated[int, typer.Option()] = 0,
    json_output: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Train a drafter from nothing but its target: the target writes the text, the drafter learns it."""
    console = Console(stderr=True)
    chosen = ModelConfig(target=target, drafter=None, device=device, dtype=dtype)
    if (out / "config.json").exists():
        raise EvoSpecError(f"{out} holds a drafter already: choose another --out")
    loaded = load_target(Config(model=chosen))
    on_gpu = loaded.device.type == "cuda"
    texts = read_training_data(data or [], split)
    text_minutes = corpus_minutes if corpus_minutes is not None else minutes * _CORPUS_SHARE
    folder = corpus if corpus is not None else out / "corpus"
    if (folder / "manifest.json").exists():
        written = Corpus(folder)
        text_minutes = 0.0
    else:
        rollout = RolloutPlan(
            rows=rows or (1024 if on_gpu else 16),
            answer_tokens=answer_tokens,
            minutes=text_minutes,
            seed=seed,
        )
        with _reporting(console, "the target writes") as report:
            written = prepare_corpus(
                loaded,
                texts,
                rollout,
                folder,
                lambda tokens, share: report(share, f"{tokens:,} tokens"),
            )
    plan = TrainingPlan(
        minutes=max(minutes - text_minutes, 0.05),
        learning_rate=learning_rate,
        steps=steps,
        tokens_per_batch=batch_tokens or (16_384 if on_gpu else 1_024),
        logit_tokens=4_096 if on_gpu else 512,
        seed=seed,
    )
    with _reporting(console, "the drafter learns") as report:
        result = train_drafter(
            loaded,
            target,
            written,
            plan,
            out,
            lambda progress: report(progress.share, _note(progress)),
            notes={"commit": git_commit(), "machine": describe_machine().model_dump()},
        )
    _summarise(result, out, console, as_json=json_output)


@contextmanager
def _reporting(console: Console, title: str) -> Iterator[Report]:
    """A progress bar on a terminal, a line every LINE_S seconds elsewhere."""
    if not console.is_terminal:
        yield _line_report(console, title)
        return
    columns = (TextColumn(title), BarColumn(), TimeElapsedColumn(), TextColumn("{task.fields[note]}"))
    with Progress(*columns, console=console) as bar:
        task = bar.add_task(title, total=1.0, note="")
        yield lambda share, note: bar.update(task, completed=share, note=note)


def _line_report(console: Console, title: str) -> Report:
    shown = -LINE_S

    def report(share: float, note: str) -> None:
        nonlocal shown
        if monotonic() - shown >= LINE_S or share >= 1.0:
            shown = monotonic()
            console.print(f"{title}: {share:.0%}  {note}", highlight=False, soft_wrap=True)

    return report


def _note(progress: TrainingProgress) -> str:
    accuracy = " ".join(f"{value:.2f}" for value in progress.accuracy)
    return (
        f"step {progress.step}  loss {progress.loss:.3f}  accuracy {accuracy}  "
        f"{progress.tokens_per_s:,.0f} tokens/s"
    )


def _summarise(report: TrainingReport, out: Path, console: Console, *, as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps(asdict(report)))
        return
    console.print(
        f"Acceptance length on held-out conversations: [bold]{report.acceptance_length:.2f}[/bold] tokens "
        f"per cycle (1.00 is plain decoding).\nDrafter saved in {out}; use it with --drafter {out}"
    )
