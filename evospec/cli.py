"""The library's commands. What they need is imported when they run, so that `--help` is instant."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Literal

import typer

from evospec.bench.cli import bench
from evospec.cli_errors import OneLineErrors
from evospec.cli_options import (
    ChatOption,
    DeviceOption,
    DrafterOption,
    DtypeOption,
    TargetOption,
    ThreadsOption,
)

app = typer.Typer(
    cls=OneLineErrors,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Speculative decoding that keeps adapting to the traffic it serves.",
)
app.add_typer(bench, name="bench")
vocab = typer.Typer(no_args_is_help=True, help="Look at the active vocabulary.")
app.add_typer(vocab, name="vocab")


def _show_version(asked: bool) -> None:
    if asked:
        from evospec import __version__

        typer.echo(f"evospec {__version__}")
        raise typer.Exit


@app.callback()
def main(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """Speculative decoding that keeps adapting to the traffic it serves."""


@app.command()
def generate(
    target: TargetOption = "smollm2-135m",
    drafter: DrafterOption = "default",
    policy: Annotated[
        str,
        typer.Option(
            help="Rows the drafter scores: `evospec`, `full`, `nanospec`, `vocabtrim:K`, `fr-spec:K` and "
            "others (docs/decoding.md); `plain` drafts nothing."
        ),
    ] = "evospec",
    prompt: Annotated[str | None, typer.Option(help="What to answer.")] = None,
    prompt_file: Annotated[
        str | None,
        typer.Option(help="File with a prompt, `-` for standard input; .jsonl: one `prompt` a line."),
    ] = None,
    max_tokens: Annotated[int, typer.Option(min=1, help="Longest answer.")] = 256,
    temperature: Annotated[float, typer.Option(min=0.0, max=2.0, help="0 takes the best token.")] = 0.0,
    top_p: Annotated[float, typer.Option(min=0.0, max=1.0, help="Nucleus sampling; 1 is off.")] = 1.0,
    seed: Annotated[int, typer.Option(help="Equal seeds give equal answers.")] = 0,
    device: DeviceOption = "auto",
    dtype: DtypeOption = "auto",
    threads: ThreadsOption = 0,
    no_chat: ChatOption = False,
    json_output: Annotated[
        bool, typer.Option("--json", help="Print one JSON object per answer instead of streaming text.")
    ] = False,
) -> None:
    """Answer a prompt: text to standard output, a line of statistics to standard error."""
    from evospec.engine.request import SamplingParams
    from evospec.generate import Generator, generate_config, read_input

    prompts = read_input(prompt, prompt_file)
    config = generate_config(
        target=target, drafter=drafter, policy=policy, device=device, dtype=dtype, threads=threads
    )
    generator = Generator(config, chat=not no_chat)
    sampling = SamplingParams(temperature=temperature, top_p=top_p, seed=seed, max_tokens=max_tokens)
    for one in prompts:
        done = generator.run(one, sampling, _discard if json_output else _stream)
        if json_output:
            typer.echo(json.dumps(done.as_dict(), ensure_ascii=False))
        else:
            typer.echo()
            typer.echo(done.summary(), err=True)


@app.command()
def models(
    json_output: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """List the models that have a built-in name, and the drafters that come with EvoSpec."""
    from evospec.listing import list_models, show_models

    listing = list_models()
    if json_output:
        typer.echo(json.dumps(listing, indent=2))
    else:
        show_models(listing)


@app.command(
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True}, add_help_option=False
)
def train(context: typer.Context) -> None:
    """Train a drafter from nothing but its target."""
    from evospec.training.cli import train as train_command

    # Its options are declared beside the training code, whose imports take seconds.
    own = typer.Typer(add_completion=False)
    own.command()(train_command)
    code = typer.main.get_command(own).main(
        args=context.args, prog_name=context.command_path, standalone_mode=False
    )
    raise typer.Exit(code or 0)


@app.command()
def export(
    drafter: Annotated[
        str, typer.Argument(help="Drafter: a folder, a shipped name, or `default` for the target's own.")
    ],
    out: Annotated[Path, typer.Option(help="New folder to write.")],
    layout: Annotated[
        Literal["speculators", "eagle3"],
        typer.Option(
            help="`speculators` for vLLM; `eagle3` for SGLang and SafeAILab's EAGLE (vLLM reads both)."
        ),
    ] = "speculators",
    target: TargetOption = "smollm2-135m",
    rows: Annotated[
        int | None,
        typer.Option(min=1, help="Head rows to keep, most frequent tokens first; default 32,000 or all."),
    ] = None,
    verifier: Annotated[
        str | None,
        typer.Option(help="What the other engine loads the target by; default its Hub id or folder."),
    ] = None,
    draft_length: Annotated[int, typer.Option(min=1, help="Draft tokens per cycle to propose.")] = 5,
) -> None:
    """Write a drafter in a layout that other engines load."""
    from evospec.export import ExportPlan, export_drafter

    plan = ExportPlan(layout=layout, rows=rows, verifier=verifier, speculative_tokens=draft_length)
    typer.echo(export_drafter(drafter, target, out, plan).summary())


@vocab.command()
def inspect(
    prompt: Annotated[str, typer.Option(help="What to answer.")],
    target: TargetOption = "smollm2-135m",
    drafter: DrafterOption = "default",
    policy: Annotated[
        str, typer.Option(help="A policy that changes: `evospec`, `evospec[SOURCE+SOURCE]`, `nanospec`.")
    ] = "evospec",
    warm: Annotated[
        list[Path] | None,
        typer.Option(help="Prompt files answered first, so that the indexes have something to say."),
    ] = None,
    max_tokens: Annotated[int, typer.Option(min=2, help="Tokens answered before the look.")] = 48,
    limit: Annotated[int, typer.Option(min=1, help="Tokens shown per source.")] = 20,
    device: DeviceOption = "auto",
    dtype: DtypeOption = "auto",
    threads: ThreadsOption = 0,
    no_chat: ChatOption = False,
    json_output: Annotated[bool, typer.Option("--json", help="Print all active tokens as JSON.")] = False,
) -> None:
    """Show which tokens are active for a prompt, where each came from, its score and its pins."""
    from evospec.bench.prompts import read_prompts
    from evospec.generate import generate_config
    from evospec.vocabulary_report import inspect_vocabulary, show_report

    config = generate_config(
        target=target, drafter=drafter, policy=policy, device=device, dtype=dtype, threads=threads
    )
    prompts = read_prompts(warm) if warm else []
    report = inspect_vocabulary(config, prompt, prompts, max_tokens=max_tokens, chat=not no_chat)
    if json_output:
        typer.echo(json.dumps(report.as_dict(), ensure_ascii=False))
    else:
        show_report(report, limit)


def _stream(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()


def _discard(text: str) -> None:
    pass
