"""`evospec bench serve` and `bench overhead`: their options. Imports come when they run."""

from __future__ import annotations

from typing import Annotated

import typer

from evospec.bench.cli import (
    JsonOption,
    MaxTokensOption,
    MorePrompts,
    OutOption,
    PromptsOption,
    SplitOption,
)
from evospec.cli_options import ChatOption, DrafterOption, DtypeOption, TargetOption


def bench_serve(
    url: Annotated[str, typer.Argument(metavar="URL", help="Endpoint, like http://127.0.0.1:8000.")],
    prompts: PromptsOption,
    out: OutOption,
    more_prompts: MorePrompts = None,
    split: SplitOption = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Prompts per domain.")] = None,
    model: Annotated[str | None, typer.Option(help="Its name there; default: the first one listed.")] = None,
    api_key: Annotated[
        str | None,
        typer.Option(help="Key of the endpoint; default: EVOSPEC_API_KEY or OPENAI_API_KEY.", metavar="KEY"),
    ] = None,
    requests: Annotated[int, typer.Option(min=1, help="Requests that count.")] = 100,
    concurrency: Annotated[
        int | None, typer.Option(min=1, help="Closed loop: requests always under way; default 4.")
    ] = None,
    rate: Annotated[
        float | None, typer.Option(help="Open loop instead: requests per second, arriving at random.")
    ] = None,
    every: Annotated[
        int | None,
        typer.Option(min=1, help="Switch the topic, the prompts' domain, after so many; default: mixed."),
    ] = None,
    warmup: Annotated[int, typer.Option(min=0, help="Requests sent before, which count nowhere.")] = 0,
    max_tokens: MaxTokensOption = 128,
    temperature: Annotated[float, typer.Option(min=0.0, max=2.0, help="0 takes the best token.")] = 0.0,
    stream: Annotated[bool, typer.Option(help="Stream answers, and time their tokens.")] = True,
    ignore_eos: Annotated[
        bool, typer.Option("--ignore-eos", help="Answers of full length (an extension of vLLM's).")
    ] = False,
    no_chat: ChatOption = False,
    timeout: Annotated[float, typer.Option(min=0.1, help="Seconds without a byte before giving up.")] = 600.0,
    seed: Annotated[int, typer.Option(help="Of arrivals and of the mix.")] = 0,
    json_output: JsonOption = False,
) -> None:
    """Load an OpenAI-compatible endpoint, ours or another, and report latencies and speed.

    Exit code 1 when nothing was answered, or a request failed otherwise than with 429.
    """
    from services.load.command import run_load, went_wrong
    from services.load.settings import Asked, LoadSettings
    from services.load.settings import api_key as pick_key

    if rate is not None and rate <= 0:
        raise typer.BadParameter("must be above 0", param_hint="--rate")
    if rate is not None and concurrency is not None:
        raise typer.BadParameter("an open loop (--rate) has no --concurrency", param_hint="--rate")
    settings = LoadSettings(
        url=url,
        prompts=(*prompts, *(more_prompts or ())),
        split=split,
        limit=limit,
        model=model,
        asked=Asked(
            max_tokens=max_tokens,
            temperature=temperature,
            stream=stream,
            chat=not no_chat,
            ignore_eos=ignore_eos,
        ),
        requests=requests,
        concurrency=concurrency or 4,
        rate=rate,
        every=every,
        warmup=warmup,
        timeout_s=timeout,
        seed=seed,
    )
    results = run_load(settings, pick_key(api_key), out)
    if json_output:
        typer.echo(results.to_json(), nl=False)
    if went_wrong(results):
        raise typer.Exit(1)


def bench_overhead(
    prompts: PromptsOption,
    out: OutOption,
    more_prompts: MorePrompts = None,
    target: TargetOption = "smollm2-135m",
    drafter: DrafterOption = "default",
    streams: Annotated[
        str, typer.Option(help="Requests at a time; several numbers, comma-separated, in turn.")
    ] = "1,16",
    rounds: Annotated[int, typer.Option(min=2, help="Turns of each side that count.")] = 5,
    requests: Annotated[int, typer.Option(min=1, help="Per turn and stream.")] = 2,
    max_tokens: Annotated[int, typer.Option(min=2, help="Length of every answer.")] = 96,
    threads: Annotated[int, typer.Option(min=1, help="CPU threads of each engine.")] = 1,
    dtype: DtypeOption = "auto",
    json_output: JsonOption = False,
) -> None:
    """Measure what HTTP, gateway and Ray Serve cost beside an engine alone, in turns, on this CPU."""
    from evospec.bench.settings import batch_sizes
    from services.load.overhead import OverheadSettings
    from services.load.overhead_command import run_overhead

    settings = OverheadSettings(
        prompts=(*prompts, *(more_prompts or ())),
        target=target,
        drafter=drafter,
        streams=tuple(batch_sizes(streams)),
        rounds=rounds,
        requests=requests,
        max_tokens=max_tokens,
        threads=threads,
        dtype=dtype,
    )
    results = run_overhead(settings, out)
    if json_output:
        typer.echo(results.to_json(), nl=False)
