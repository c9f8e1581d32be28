"""`evospec bench`: what is measured, how, and where the files go. Imports come when a command runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from evospec.bench.paper.cli import paper, paper_diff, paper_report
from evospec.cli_options import (
    ChatOption,
    DeviceOption,
    DrafterOption,
    DtypeOption,
    TargetOption,
    ThreadsOption,
)

bench = typer.Typer(no_args_is_help=True, help="Measure, and write results.json, report.md and plots.")

bench.command()(paper)
bench.command("paper-report")(paper_report)
bench.command("paper-diff")(paper_diff)

PromptsOption = Annotated[
    list[Path],
    typer.Option("--prompts", metavar="FILE...", help="Prompt files, JSON lines with `prompt`."),
]
MorePrompts = Annotated[
    list[Path] | None, typer.Argument(metavar="[FILE]...", help="More prompt files.", show_default=False)
]
OutOption = Annotated[Path, typer.Option(help="Folder for results.json, report.md and plots.")]
SplitOption = Annotated[str | None, typer.Option(help="Use only lines with this `split`.")]
DraftLengthOption = Annotated[int, typer.Option(min=1, max=16, help="Draft tokens per cycle.")]
MaxTokensOption = Annotated[int, typer.Option(min=1, help="Longest answer.")]
CapacityOption = Annotated[int, typer.Option(min=64, help="Most rows that a dynamic policy keeps active.")]
CoreOption = Annotated[
    int, typer.Option(min=0, help="Most frequent tokens, always active in a dynamic policy.")
]
WarmOption = Annotated[
    list[Path] | None,
    typer.Option(help="Prompt file that policies learn from before anything counts; may be repeated."),
]
WarmSplitOption = Annotated[str | None, typer.Option(help="Learn only from lines with this `split`.")]
WarmLimitOption = Annotated[int | None, typer.Option(min=1, help="Prompts per domain to learn from.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print the results as JSON.")]


@bench.command()
def decode(
    prompts: PromptsOption,
    out: OutOption,
    more_prompts: MorePrompts = None,
    target: TargetOption = "smollm2-135m",
    drafter: DrafterOption = "default",
    split: SplitOption = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Prompts per domain.")] = None,
    warm: WarmOption = None,
    warm_split: WarmSplitOption = None,
    warm_limit: WarmLimitOption = None,
    policies: Annotated[
        str,
        typer.Option(
            help="What to compare, comma-separated: vocabulary policies, each with `@drafting` where it is "
            "not --drafting (evospec@tree:4x4x12), and peers: `transformers`, `transformers:static`, "
            "`transformers:prompt-lookup`, `transformers:assisted`. `plain` is always run as well."
        ),
    ] = "plain,full,fr-spec:32768,evospec",
    drafting: Annotated[
        str,
        typer.Option(
            help="How policies draft: `auto` takes what is fastest; `chain` or `chain:N`; `tree` or "
            "`tree:DxBxN` (depth, beam, nodes)."
        ),
    ] = "auto",
    assistant: Annotated[
        str | None,
        typer.Option(help="Smaller model with the target's tokenizer, for `transformers:assisted`."),
    ] = None,
    device: DeviceOption = "auto",
    dtype: DtypeOption = "auto",
    threads: ThreadsOption = 0,
    batch: Annotated[
        str, typer.Option(help="Requests decoded together; several sizes, comma-separated, in turn.")
    ] = "1",
    max_tokens: MaxTokensOption = 128,
    draft_length: DraftLengthOption = 5,
    capacity: CapacityOption = 4096,
    core: CoreOption = 1024,
    temperature: Annotated[float, typer.Option(min=0.0, max=2.0, help="0 takes the best token.")] = 0.0,
    seed: Annotated[int, typer.Option(help="Of sampling, when the temperature is not 0.")] = 0,
    no_chat: ChatOption = False,
    no_profile: Annotated[
        bool, typer.Option("--no-profile", help="Leave out the pass that breaks cycles down.")
    ] = False,
    json_output: JsonOption = False,
) -> None:
    """Compare ways of decoding with plain decoding, interleaved in one process.

    Exit code 1 when an output is not the target's own.
    """
    from evospec.bench.command import run_decode
    from evospec.bench.settings import DecodeSettings, Lessons, batch_sizes, vocabulary

    first_batch, *more_batches = batch_sizes(batch)
    settings = DecodeSettings(
        target=target,
        prompts=(*prompts, *(more_prompts or ())),
        drafter=drafter,
        split=split,
        limit=limit,
        policies=_names(policies),
        drafting=drafting,
        assistant=assistant,
        profile=not no_profile,
        device=device,
        dtype=dtype,
        threads=threads,
        batch=first_batch,
        more_batches=tuple(more_batches),
        max_tokens=max_tokens,
        draft_length=draft_length,
        temperature=temperature,
        seed=seed,
        chat=not no_chat,
        vocabulary=vocabulary(capacity=capacity, core=core),
        lessons=Lessons(tuple(warm or ()), warm_split, warm_limit),
    )
    results = run_decode(settings, out)
    if json_output:
        typer.echo(results.to_json(), nl=False)
    if results.failures:
        raise typer.Exit(1)


@bench.command()
def stream(
    prompts: PromptsOption,
    out: OutOption,
    more_prompts: MorePrompts = None,
    every: Annotated[int, typer.Option(min=1, help="Requests of a topic before the next one.")] = 4,
    rounds: Annotated[int, typer.Option(min=1, help="How often each topic comes.")] = 2,
    target: TargetOption = "smollm2-135m",
    drafter: DrafterOption = "default",
    split: SplitOption = None,
    warm: WarmOption = None,
    warm_split: WarmSplitOption = None,
    warm_limit: WarmLimitOption = None,
    policies: Annotated[
        str,
        typer.Option(help="What to compare, comma-separated, as in `bench decode`; `plain` is always run."),
    ] = "full,fr-spec:32768,nanospec,evospec",
    arms: Annotated[
        str | None,
        typer.Option(
            help="Adapt drafters to the stream, and compare ways to do so, comma-separated: `none`, `lora`, "
            "`full-parameter`, `full-parameter+full-loss`, each with `:option=value` for options of "
            "`alignment`, and `@policy` where it is not --policy. The split `adapt` streams, and `eval` "
            "is reported on."
        ),
    ] = None,
    policy: Annotated[
        str, typer.Option(help="With --arms: vocabulary policy of arms that name none.")
    ] = "evospec",
    topics: Annotated[
        str, typer.Option(help="With --arms: domains that stream, comma-separated; all by default.")
    ] = "",
    limit: Annotated[
        int | None, typer.Option(min=1, help="With --arms: prompts per topic that stream.")
    ] = None,
    eval_limit: Annotated[
        int | None, typer.Option(min=1, help="With --arms: held-out prompts per domain.")
    ] = None,
    batch: Annotated[int, typer.Option(min=1, help="With --arms: requests decoded together.")] = 1,
    minutes: Annotated[
        float | None,
        typer.Option(min=0.0, help="With --arms: end the stream early, so that all is done in this time."),
    ] = None,
    drafting: Annotated[
        str, typer.Option(help="How policies draft, as in `bench decode`; chains make τ comparable.")
    ] = "chain",
    device: DeviceOption = "auto",
    dtype: DtypeOption = "auto",
    threads: ThreadsOption = 0,
    max_tokens: MaxTokensOption = 128,
    draft_length: DraftLengthOption = 5,
    capacity: CapacityOption = 4096,
    core: CoreOption = 1024,
    no_chat: ChatOption = False,
    json_output: JsonOption = False,
) -> None:
    """Decode requests whose topic changes, and see how policies cope with it, or, with --arms, drafters.

    Topics are the prompts' domains. Exit code 1 when an output is not the target's own, or an arm failed.
    """
    from evospec.bench.align_command import run_align_stream
    from evospec.bench.align_stream import AlignStreamSettings
    from evospec.bench.settings import DecodeSettings, Lessons, vocabulary
    from evospec.bench.stream import StreamSettings
    from evospec.bench.stream_command import run_stream

    decoding = DecodeSettings(
        target=target,
        prompts=(*prompts, *(more_prompts or ())),
        drafter=drafter,
        split=split,
        limit=limit,
        policies=_names(policies) if arms is None else (policy,),
        drafting=drafting,
        profile=False,
        device=device,
        dtype=dtype,
        threads=threads,
        batch=1 if arms is None else batch,
        max_tokens=max_tokens,
        draft_length=draft_length,
        chat=not no_chat,
        vocabulary=vocabulary(capacity=capacity, core=core),
        lessons=Lessons(tuple(warm or ()), warm_split, warm_limit),
    )
    if arms is not None:
        adapt = AlignStreamSettings(
            decoding, _names(arms), _names(topics), every, rounds, eval_limit=eval_limit, minutes=minutes
        )
        results = run_align_stream(adapt, out)
        if json_output:
            typer.echo(results.to_json(), nl=False)
        if results.alignment is not None and results.alignment.failures:
            raise typer.Exit(1)
        return
    settings = StreamSettings(
        decoding,
        every=every,
        rounds=rounds,
    )
    results = run_stream(settings, out)
    if json_output:
        typer.echo(results.to_json(), nl=False)
    if results.failures:
        raise typer.Exit(1)


@bench.command()
def memory(
    out: OutOption,
    shapes: Annotated[
        str,
        typer.Option(
            help="Target whose sizes are taken: smollm2-135m, qwen2.5-coder-0.5b, qwen2.5-coder-1.5b, "
            "llama-3-8b or gemma-3-27b. Weights are random."
        ),
    ] = "smollm2-135m",
    arms: Annotated[
        str, typer.Option(help="Ways to adapt, as in `bench stream`.")
    ] = "lora,full-parameter,full-parameter+full-loss",
    updates: Annotated[int, typer.Option(min=1, help="Per arm.")] = 3,
    steps: Annotated[int, typer.Option(min=1, help="Optimiser steps of an update.")] = 4,
    device: DeviceOption = "auto",
    dtype: DtypeOption = "auto",
    threads: ThreadsOption = 0,
    json_output: JsonOption = False,
) -> None:
    """Measure the extra memory and the time that updates of a drafter take, at the sizes of a target."""
    from evospec.bench.align_command import run_memory
    from evospec.bench.update_memory import MemorySettings

    settings = MemorySettings(
        shapes, _names(arms), device=device, dtype=dtype, threads=threads, updates=updates, steps=steps
    )
    results = run_memory(settings, out)
    if json_output:
        typer.echo(results.to_json(), nl=False)


def _names(text: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.split(",") if name.strip())
