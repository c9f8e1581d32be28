"""The library's commands. What they need is imported when they run, so that `--help` is instant."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Literal

import typer

from evospec.cli_errors import OneLineErrors

Device = Literal["auto", "cpu", "cuda"]
Dtype = Literal["auto", "float32", "bfloat16"]

app = typer.Typer(
    cls=OneLineErrors,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Speculative decoding that keeps adapting to the traffic it serves.",
)
bench = typer.Typer(no_args_is_help=True, help="Measure, and write results.json, report.md and plots.")
app.add_typer(bench, name="bench")

TargetOption = Annotated[
    str, typer.Option(help="Model to decode: built-in name (see `models`), folder, GGUF file or Hub id.")
]
DrafterOption = Annotated[
    str,
    typer.Option(
        help="Drafter: a folder (published EAGLE-3 and speculators checkpoints too), a Hub id, a shipped "
        "name, or `default` for the one made for the target."
    ),
]
DeviceOption = Annotated[Device, typer.Option(help="Where to decode.")]
DtypeOption = Annotated[
    Dtype, typer.Option(help="Number format; `auto` is bfloat16 where the processor computes in it.")
]
ThreadsOption = Annotated[int, typer.Option(min=0, help="CPU threads; 0 leaves PyTorch's default.")]
ChatOption = Annotated[
    bool, typer.Option("--no-chat", help="Continue the text as it is, without the model's chat template.")
]


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
        typer.Option(help="Rows the drafter scores: `evospec`, `full`, `fr-spec:K`; `plain` drafts nothing."),
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


@bench.command()
def decode(
    prompts: Annotated[
        list[Path],
        typer.Option("--prompts", metavar="FILE...", help="Prompt files, JSON lines with `prompt`."),
    ],
    out: Annotated[Path, typer.Option(help="Folder for results.json, report.md and plots.")],
    more_prompts: Annotated[
        list[Path] | None, typer.Argument(metavar="[FILE]...", help="More prompt files.", show_default=False)
    ] = None,
    target: TargetOption = "smollm2-135m",
    drafter: DrafterOption = "default",
    split: Annotated[str | None, typer.Option(help="Use only lines with this `split`.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Prompts per domain.")] = None,
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
    batch: Annotated[int, typer.Option(min=1, max=1024, help="Requests decoded together.")] = 1,
    max_tokens: Annotated[int, typer.Option(min=1, help="Longest answer.")] = 128,
    draft_length: Annotated[int, typer.Option(min=1, max=16, help="Draft tokens per cycle.")] = 5,
    capacity: Annotated[
        int, typer.Option(min=64, help="Most rows that a dynamic policy keeps active.")
    ] = 4096,
    core: Annotated[
        int, typer.Option(min=0, help="Most frequent tokens, always active in a dynamic policy.")
    ] = 1024,
    temperature: Annotated[float, typer.Option(min=0.0, max=2.0, help="0 takes the best token.")] = 0.0,
    seed: Annotated[int, typer.Option(help="Of sampling, when the temperature is not 0.")] = 0,
    no_chat: ChatOption = False,
    no_profile: Annotated[
        bool, typer.Option("--no-profile", help="Leave out the pass that breaks cycles down.")
    ] = False,
    json_output: Annotated[bool, typer.Option("--json", help="Print the results as JSON.")] = False,
) -> None:
    """Compare ways of decoding with plain decoding, interleaved in one process.

    Exit code 1 when an output is not the target's own.
    """
    from evospec.bench.command import run_decode
    from evospec.bench.settings import DecodeSettings, vocabulary

    settings = DecodeSettings(
        target=target,
        prompts=(*prompts, *(more_prompts or ())),
        drafter=drafter,
        split=split,
        limit=limit,
        policies=tuple(name.strip() for name in policies.split(",") if name.strip()),
        drafting=drafting,
        assistant=assistant,
        profile=not no_profile,
        device=device,
        dtype=dtype,
        threads=threads,
        batch=batch,
        max_tokens=max_tokens,
        draft_length=draft_length,
        temperature=temperature,
        seed=seed,
        chat=not no_chat,
        vocabulary=vocabulary(capacity=capacity, core=core),
    )
    results = run_decode(settings, out)
    if json_output:
        typer.echo(results.to_json(), nl=False)
    if results.failures:
        raise typer.Exit(1)


def _stream(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()


def _discard(text: str) -> None:
    pass
