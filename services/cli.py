"""The installed command `evospec`: the library's commands, and those of the server."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from evospec.cli import app

weights = typer.Typer(no_args_is_help=True, help="Adapter versions in the weight registry.")
app.add_typer(weights, name="weights")

ConfigOption = Annotated[
    Path | None, typer.Option(metavar="FILE", help="YAML file; see docs/configuration.md for its keys.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]
RegistryOption = Annotated[
    str | None, typer.Option("--registry", metavar="URL", help="Redis or Valkey URL; above registry.url.")
]


@app.command()
def serve(
    config: ConfigOption = None,
    target: Annotated[str | None, typer.Option(help="Model to serve; above model.target.")] = None,
    drafter: Annotated[str | None, typer.Option(help="Drafter folder; above model.drafter.")] = None,
    host: Annotated[str | None, typer.Option(help="Address to listen on; above serve.host.")] = None,
    port: Annotated[int | None, typer.Option(help="Port to listen on, 0 for a free one.")] = None,
    replicas: Annotated[int | None, typer.Option(help="Decoding replicas; above serve.replicas.")] = None,
    verbose: Annotated[bool, typer.Option("--verbose", help="Show what all processes log.")] = False,
) -> None:
    """Serve a model behind an OpenAI-compatible endpoint on this machine, until Ctrl-C."""
    from services.serve_command import run
    from services.settings import load_config

    options = {
        "model.target": target,
        "model.drafter": drafter,
        "serve.host": host,
        "serve.port": port,
        "serve.replicas": replicas,
    }
    given = {key: value for key, value in options.items() if value is not None}
    run(load_config(config, given), verbose=verbose)


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Folder for report.md, results.json and plots.")] = Path(
        "demo-report"
    ),
    requests: Annotated[int, typer.Option(min=1, help="Requests to send, over all topics.")] = 72,
    replicas: Annotated[int, typer.Option(min=1, max=64, help="Decoding replicas.")] = 2,
    concurrency: Annotated[int, typer.Option(min=1, max=256, help="Requests at a time.")] = 4,
    max_tokens: Annotated[int, typer.Option(min=1, help="Longest answer.")] = 80,
    target: Annotated[str | None, typer.Option(help="Model to serve; above model.target.")] = None,
    drafter: Annotated[str | None, typer.Option(help="Drafter folder; above model.drafter.")] = None,
) -> None:
    """Start everything here, serve prompts that switch topic, and report how the drafter adapts.

    Exit code 1 when a request failed, or fewer than two adapter versions reached all replicas.
    """
    from services.demo.run import DemoOptions, run

    options = DemoOptions(
        target=target,
        drafter=drafter,
        replicas=replicas,
        requests=requests,
        concurrency=concurrency,
        max_tokens=max_tokens,
    )
    raise typer.Exit(run(out, options))


@weights.command("list")
def list_weights(
    config: ConfigOption = None, registry: RegistryOption = None, json_output: JsonOption = False
) -> None:
    """List the versions that the registry keeps, and which one each replica runs."""
    from services.weights_command import read_overview, registry_settings, show_overview

    overview = read_overview(registry_settings(config, registry))
    if json_output:
        typer.echo(json.dumps(overview.as_dict(), indent=2))
    else:
        show_overview(overview)


@weights.command("show")
def show_weights(
    version: Annotated[int, typer.Argument(help="Version, as `weights list` shows it.")],
    config: ConfigOption = None,
    registry: RegistryOption = None,
    json_output: JsonOption = False,
) -> None:
    """Show a version's manifest: where it comes from, what it holds, how it was judged."""
    from services.weights_command import registry_settings, show_version, version_manifest

    manifest = version_manifest(registry_settings(config, registry), version)
    if json_output:
        typer.echo(manifest.to_json())
    else:
        show_version(manifest)


def main() -> None:
    """Entry point."""
    app(prog_name="evospec")
