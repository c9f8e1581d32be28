"""`evospec bench paper` and what goes with it. Imports come when a command runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from evospec.cli_options import (
    ChatOption,
    DeviceOption,
    DrafterOption,
    DtypeOption,
    TargetOption,
    ThreadsOption,
)

_FOLDER = Path("prompts")
FolderArgument = Annotated[Path, typer.Argument(help="Folder of a paper bench.")]


def paper(
    out: Annotated[Path, typer.Option(help="Folder for results; the same one goes on where it stopped.")],
    target: TargetOption = "qwen2.5-coder-0.5b",
    drafter: DrafterOption = "default",
    prompts: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="FILE",
            help="Prompt file with splits `adapt` and `eval`; may be repeated. By default all of prompts/.",
        ),
    ] = None,
    minutes: Annotated[
        float | None, typer.Option(min=0.1, help="Stop before; the same command goes on later.")
    ] = None,
    parts: Annotated[
        str, typer.Option(help="Only these parts, comma-separated, or those whose names begin so.")
    ] = "",
    quick: Annotated[
        bool, typer.Option("--quick", help="Small sizes, for a CPU: it shows that all works, no more.")
    ] = False,
    limit: Annotated[int | None, typer.Option(min=1, help="Prompts per domain of the headline.")] = None,
    few: Annotated[int | None, typer.Option(min=1, help="The same at temperature 1, and with trees.")] = None,
    peers: Annotated[int | None, typer.Option(min=1, help="The same for transformers' generation.")] = None,
    lessons: Annotated[
        int | None, typer.Option(min=0, help="`adapt` prompts per domain that policies learn from before.")
    ] = None,
    max_tokens: Annotated[int | None, typer.Option(min=1, help="Longest answer.")] = None,
    batch: Annotated[str, typer.Option(help="Sizes besides 1, comma-separated.")] = "",
    learn_every: Annotated[
        int | None, typer.Option(min=1, help="Requests of a topic that drafters learn from, each round.")
    ] = None,
    align: Annotated[
        str | None, typer.Option(help="How EvoSpec adapts, an arm as in `bench stream --arms`.")
    ] = None,
    shapes: Annotated[
        str, typer.Option(help="Random targets to time: llama-3-8b, qwen2.5-7b, gemma-3-27b, tiny.")
    ] = "",
    device: DeviceOption = "auto",
    dtype: DtypeOption = "auto",
    threads: ThreadsOption = 0,
    no_chat: ChatOption = False,
    restart: Annotated[
        bool, typer.Option("--restart", help="Throw away what the folder holds, and begin again.")
    ] = False,
    mixed: Annotated[
        bool,
        typer.Option("--mixed", help="Go on though settings, code or machine changed; the report says so."),
    ] = False,
) -> None:
    """Measure the paper's claim: all arms, all conditions, in one run that goes on where it stopped.

    Exit code 1 when an output is not the target's own or a part failed, 3 when parts are left.
    """
    from dataclasses import replace

    from evospec.bench.paper.run import Call, run_paper
    from evospec.bench.paper.settings import ALIGNED, Learner, PaperSettings
    from evospec.bench.settings import batch_sizes

    files = tuple(prompts or sorted(_FOLDER.glob("*.jsonl")))
    if not files:
        raise typer.BadParameter(f"no prompts: {_FOLDER} has none, so name files with --prompts")
    settings = PaperSettings(
        target,
        files,
        drafter=drafter,
        device=device,
        dtype=dtype,
        threads=threads,
        chat=not no_chat,
    )
    if quick:
        settings = settings.quick()
    given = {"limit": limit, "few": few, "peers": peers, "lessons": lessons, "max_tokens": max_tokens}
    settings = replace(settings, **{name: value for name, value in given.items() if value is not None})  # type: ignore[arg-type]
    if batch:
        settings = replace(settings, batches=batch_sizes(batch))
    if shapes:
        settings = replace(settings, shapes=_names(shapes))
    learning = settings.learning
    if learn_every is not None:
        learning = replace(learning, every=learn_every)
    if align is not None:
        others = tuple(one for one in learning.learners if one.name != ALIGNED)
        learning = replace(learning, learners=(Learner(ALIGNED, align), *others))
    outcome = run_paper(
        replace(settings, learning=learning), out, Call(minutes, _names(parts), restart, mixed)
    )
    if outcome.broken or (outcome.results is not None and outcome.results.failures):
        raise typer.Exit(1)
    if outcome.left:
        raise typer.Exit(3)


def paper_report(
    folder: FolderArgument,
    repeat: Annotated[
        Path | None, typer.Option(help="The same command's folder of another time, to compare with.")
    ] = None,
) -> None:
    """Write a paper bench's report and plots again, from its files alone."""
    from evospec.bench.paper.report import write_paper

    write_paper(folder, repeat)
    typer.echo(f"results.json, report.md and plots are in {folder}")


def paper_diff(
    first: FolderArgument, second: Annotated[Path, typer.Argument(help="Another one, of the same command.")]
) -> None:
    """Print how far the ratios of two runs are apart. Exit code 1 when one is by more than 3 %."""
    from evospec.bench.paper.bars import REPEATED
    from evospec.bench.paper.diff import compare
    from evospec.bench.paper.state import PaperFolder

    found = compare(PaperFolder(first).parts(), PaperFolder(second).parts())
    if not found:
        raise typer.BadParameter(f"{first} and {second} have no part in common that was measured")
    for one in found:
        typer.echo(f"{one.part:<12} {one.arm:<32} {one.first:7.3f} {one.second:7.3f} {one.change:+7.1%}")
    largest = max(abs(one.change) for one in found)
    typer.echo(f"at most {largest:.1%} apart ({REPEATED:.0%} allowed)")
    if largest > REPEATED:
        raise typer.Exit(1)


def _names(text: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.split(",") if name.strip())
