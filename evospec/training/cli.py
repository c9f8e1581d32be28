"""`evospec train`: options, progress on screen, and a summary that says how good the drafter is."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from time import monotonic
from typing import Annotated, Literal

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from evospec.config import Config, ModelConfig
from evospec.engine.build import load_target
from evospec.errors import EvoSpecError
from evospec.training.checkpoint import CheckpointStore
from evospec.training.conversations import RolloutPlan
from evospec.training.corpus import Corpus
from evospec.training.data import read_training_data
from evospec.training.display import show_training, summary
from evospec.training.memory import memory_errors, rollout_advice
from evospec.training.pipeline import RunSettings, prepare_corpus, train_drafter
from evospec.training.plan import TrainingPlan
from evospec.training.stopping import StoppedError, StopSignal

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
        list[Path] | None,
        typer.Option(
            help="JSON lines, a text file, a folder of these, or a YAML list of sources "
            "(see docs/training.md). May be repeated."
        ),
    ] = None,
    split: Annotated[str | None, typer.Option(help="Use only JSON lines with this `split`.")] = None,
    on_policy_weight: Annotated[
        float | None,
        typer.Option(min=0.0, help="Weight of the target's own text beside --data; 0: it writes none."),
    ] = None,
    minutes: Annotated[
        float, typer.Option(min=0.1, help="Time for text and training together; --resume keeps the first.")
    ] = 10.0,
    optimizer_steps: Annotated[
        int | None, typer.Option(min=1, help="Train for so many steps instead of by time.")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue the run that --out holds.")] = False,
    init: Annotated[
        str | None,
        typer.Option(help="Begin with the weights of this drafter: a folder or a shipped name."),
    ] = None,
    checkpoint_minutes: Annotated[
        float, typer.Option(min=0.01, help="Time between checkpoints, each with a usable drafter.")
    ] = 2.0,
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
    steps: Annotated[
        int | None,
        typer.Option(min=1, max=16, help="Draft steps unrolled in training: 5, or 3 on a CPU."),
    ] = None,
    batch_tokens: Annotated[int | None, typer.Option(min=256, help="Tokens per optimiser step.")] = None,
    logit_tokens: Annotated[
        int | None, typer.Option(min=1, help="Positions whose logits exist at once; less saves memory.")
    ] = None,
    learning_rate: Annotated[
        float | None, typer.Option(min=1e-6, help="Peak of the learning rate: 1e-3, or 2e-3 on a CPU.")
    ] = None,
    mlp_factor: Annotated[
        int, typer.Option(min=1, max=8, help="Width of the drafter's MLP, in widths of the target's.")
    ] = 1,
    focus: Annotated[
        float,
        typer.Option(
            min=0.0, help="Turn from KL to the share of drafts accepted where that is high already; 0: never."
        ),
    ] = 0.0,
    step_decay: Annotated[
        float, typer.Option(min=0.01, max=1.0, help="Weight of each draft step relative to the one before.")
    ] = 0.8,
    unreached: Annotated[
        float, typer.Option(min=0.0, max=1.0, help="Weight of draft steps that follow a wrong one.")
    ] = 0.3,
    weight_decay: Annotated[float, typer.Option(min=0.0, help="Of AdamW.")] = 0.01,
    random_start: Annotated[
        bool,
        typer.Option("--random-start", help="Begin from random weights, not from the target's last layer."),
    ] = False,
    ema: Annotated[
        float,
        typer.Option(min=0.0, max=0.99999, help="Average the weights, keeping this much a step; 0: off."),
    ] = 0.0,
    seed: Annotated[int, typer.Option()] = 0,
    json_output: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Train a drafter from nothing but its target: the target writes the text, the drafter learns it."""
    console = Console(stderr=True)
    chosen = ModelConfig(target=target, drafter=None, device=device, dtype=dtype)
    _check_out(out, resume=resume)
    texts = read_training_data(data or [], split, on_policy_weight, seed)
    loaded = load_target(Config(model=chosen))
    on_gpu = loaded.device.type == "cuda"
    text_minutes = corpus_minutes if corpus_minutes is not None else minutes * _CORPUS_SHARE
    if on_policy_weight == 0:
        text_minutes = 0.0
    folder = corpus if corpus is not None else out / "corpus"
    if (folder / "manifest.json").exists():
        written = Corpus(folder, loaded.fingerprint.tokenizer)
        text_minutes = 0.0
        if data:
            console.print(f"{folder} holds a corpus: --data is not read again", soft_wrap=True)
    else:
        rollout = RolloutPlan(
            rows=rows or (1024 if on_gpu else 16),
            answer_tokens=answer_tokens,
            minutes=text_minutes,
            seed=seed,
        )
        advice = rollout_advice(rollout.rows)
        began = monotonic()
        with _reporting(console, "corpus") as report, memory_errors(lambda: advice):
            written = prepare_corpus(loaded, texts, rollout, folder, report)
        text_minutes = (monotonic() - began) / 60  # rollouts end late where steps are slow
    _describe(written, folder, console)
    plan = TrainingPlan(
        minutes=max(minutes - text_minutes, 0.05),
        optimizer_steps=optimizer_steps,
        learning_rate=learning_rate or (1e-3 if on_gpu else 2e-3),
        weight_decay=weight_decay,
        ema=ema,
        warm_start=not random_start,
        steps=steps or (5 if on_gpu else 3),
        step_decay=step_decay,
        unreached=unreached,
        focus=focus,
        tokens_per_batch=batch_tokens or (16_384 if on_gpu else 256),
        logit_tokens=logit_tokens or (4_096 if on_gpu else 512),
        seed=seed,
    )
    settings = RunSettings(out, checkpoint_minutes, resume, init, mlp_factor)
    try:
        with StopSignal() as stop, show_training(console) as show:
            result = train_drafter(loaded, target, written, plan, settings, show, stop)
    except StoppedError as stopped:
        console.print(str(stopped), highlight=False, markup=False, soft_wrap=True)
        raise typer.Exit(stopped.exit_code) from None
    if json_output:
        typer.echo(result.model_dump_json())
    else:
        console.print(summary(result, str(out)), highlight=False, markup=False)


def _check_out(out: Path, *, resume: bool) -> None:
    """Before anything is loaded: what --out holds must be what is asked for."""
    store = CheckpointStore(out)
    if resume:
        store.require()
    elif store.exists():
        raise EvoSpecError(f"{out} holds a training run: continue it with --resume, or choose another --out")
    elif (out / "config.json").exists():
        raise EvoSpecError(f"{out} holds a drafter already: choose another --out")


def _describe(corpus: Corpus, folder: Path, console: Console) -> None:
    """A line per source: what is in the corpus, whether it was made just now or found."""
    console.print(f"corpus in {folder}: {corpus.token_count:,} tokens", highlight=False, soft_wrap=True)
    for source in corpus.manifest.sources:
        dropped = sum(source.dropped.model_dump(exclude={"files"}).values())
        held = f"{source.documents:,} documents, {source.tokens:,} tokens ({source.share:.0%})"
        console.print(
            f"  {source.name} ({source.kind}): "
            + (f"{source.records:,} read" if source.kind == "prompts" else held)
            + (f", {dropped:,} left out" if dropped else ""),
            highlight=False,
            soft_wrap=True,
            markup=False,
        )


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
