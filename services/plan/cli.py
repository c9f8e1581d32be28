"""`evospec plan`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Literal

import typer


def plan(
    requests_per_s: Annotated[
        float | None, typer.Option("--requests-per-s", help="Load, on average.")
    ] = None,
    tokens_per_s: Annotated[
        float | None,
        typer.Option("--tokens-per-s", help="Load in answer tokens, instead of --requests-per-s."),
    ] = None,
    prompt_tokens: Annotated[float, typer.Option(help="Mean prompt.")] = 400,
    answer_tokens: Annotated[float, typer.Option(help="Mean answer.")] = 200,
    model: Annotated[
        str, typer.Option(metavar="NAME", help="Built-in name, or a model's config.json or folder.")
    ] = "qwen2.5-coder-0.5b",
    gpu: Annotated[str, typer.Option(help="b200, h200, h100, a100, l40s, a10 or l4.")] = "h200",
    gpus: Annotated[
        int | None, typer.Option(help="GPUs that there are; default: as many as it takes.")
    ] = None,
    aligner_gpu: Annotated[str | None, typer.Option(help="Where the aligner trains; default: --gpu.")] = None,
    replicas: Annotated[int, typer.Option(help="Replicas that there may be.")] = 1000,
    batch: Annotated[
        int | None, typer.Option(help="Requests together on a replica; default: the best.")
    ] = None,
    acceptance: Annotated[float, typer.Option(help="Acceptance length τ, tokens a cycle.")] = 3.0,
    trace_mb_per_s: Annotated[
        float | None, typer.Option(help="Traces a replica makes; above alignment.trace_mb_per_s.")
    ] = None,
    traced: Annotated[float, typer.Option(help="Share of the requests that may be learned from.")] = 1.0,
    utilisation: Annotated[float, typer.Option(help="Load of replicas, on average.")] = 0.7,
    max_wait: Annotated[float, typer.Option(help="Seconds that 95 % of the requests wait at most.")] = 1.0,
    burstiness: Annotated[
        float,
        typer.Option(help="Squared variation of the gaps between requests; 1: at random, more: bursts."),
    ] = 1.0,
    variation: Annotated[float, typer.Option(help="The same of how long requests take.")] = 1.0,
    network: Annotated[float, typer.Option(help="Gbit/s of each node.")] = 25.0,
    index: Annotated[
        Literal["server", "embedded"], typer.Option(help="A Qdrant server, or the embedded index.")
    ] = "server",
    config: Annotated[
        Path | None, typer.Option(metavar="FILE", help="YAML file whose settings are planned with.")
    ] = None,
    json_output: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Say what a load takes: replicas, networks, aligner, Redis and Qdrant, and what runs out first.

    Nothing is started or fetched. Exit code 1 when something runs out.
    """
    from services.plan.accelerators import accelerator_of
    from services.plan.planner import plan as make
    from services.plan.question import Hardware, Load, Question
    from services.plan.shapes import shape_of
    from services.plan.view import show_plan
    from services.settings import load_config

    options = {} if trace_mb_per_s is None else {"alignment.trace_mb_per_s": trace_mb_per_s}
    made = make(
        Question(
            load=Load(
                requests_per_s=_requests_per_s(requests_per_s, tokens_per_s, answer_tokens),
                prompt_tokens=prompt_tokens,
                answer_tokens=answer_tokens,
                burstiness=burstiness,
                variation=variation,
            ),
            shape=shape_of(model),
            hardware=Hardware(
                gpu=accelerator_of(gpu),
                gpus=gpus,
                max_replicas=replicas,
                aligner_gpu=None if aligner_gpu is None else accelerator_of(aligner_gpu),
                network_gbit=network,
                index=index,
            ),
            config=load_config(config, options),
            acceptance=acceptance,
            batch=batch,
            utilisation=utilisation,
            max_wait_s=max_wait,
            traced=traced,
        )
    )
    if json_output:
        typer.echo(json.dumps(made.as_dict(), indent=2))
    else:
        show_plan(made)
    raise typer.Exit(0 if made.fits else 1)


def _requests_per_s(requests: float | None, tokens: float | None, answer: float) -> float:
    from services.plan.errors import PlanError

    if (requests is None) == (tokens is None):
        raise PlanError("give the load as --requests-per-s or as --tokens-per-s")
    if requests is not None:
        return requests
    if not answer > 0:
        raise PlanError(f"answer_tokens is {answer:g}: it must be above 0 and finite")
    return (tokens or 0.0) / answer
