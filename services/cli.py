"""The installed command `evospec`: the library's commands, and those of the server."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from evospec.bench.cli import bench
from evospec.cli import app
from services.load.cli import bench_overhead, bench_serve
from services.plan.cli import plan

if TYPE_CHECKING:
    from evospec.wire import DecisionKind

weights = typer.Typer(no_args_is_help=True, help="Adapter versions in the weight registry.")
app.add_typer(weights, name="weights")
keys = typer.Typer(no_args_is_help=True, help="Keys to the endpoint.")
app.add_typer(keys, name="keys")
index = typer.Typer(no_args_is_help=True, help="The token index on a Qdrant server.")
app.add_typer(index, name="index")
bench.command("serve")(bench_serve)
bench.command("overhead")(bench_overhead)
app.command("plan")(plan)

ConfigOption = Annotated[
    Path | None, typer.Option(metavar="FILE", help="YAML file; see docs/configuration.md for its keys.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]
RegistryOption = Annotated[
    str | None, typer.Option("--registry", metavar="URL", help="Redis or Valkey URL; above registry.url.")
]
VersionArgument = Annotated[
    int, typer.Argument(min=1, max=2**53, help="Version, as `weights list` shows it.")
]
ByOption = Annotated[
    str | None,
    typer.Option(metavar="NAME", help="Who decides, for the audit trail; default: the login name."),
]
ReasonOption = Annotated[str, typer.Option(metavar="TEXT", help="Why, for the audit trail.")]
DryRunOption = Annotated[
    bool, typer.Option("--dry-run", help="Check it and print what would happen; change nothing.")
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
    dump_config: Annotated[
        bool,
        typer.Option("--dump-config", help="Only print the Serve config for a Ray cluster."),
    ] = False,
) -> None:
    """Serve a model behind an OpenAI-compatible endpoint on this machine, until Ctrl-C."""
    from services.serve_command import print_serve_config, run
    from services.settings import load_config

    options = {
        "model.target": target,
        "model.drafter": drafter,
        "serve.host": host,
        "serve.port": port,
        "serve.replicas": replicas,
    }
    given = {key: value for key, value in options.items() if value is not None}
    if dump_config:
        print_serve_config(load_config(config, given))
        return
    run(load_config(config, given), verbose=verbose, reload=lambda: load_config(config, given))


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
    """List the versions that the registry keeps, which ones are stable and on trial, and who runs what."""
    from services.weights_command import read_overview, registry_settings
    from services.weights_view import show_overview

    overview = read_overview(registry_settings(config, registry))
    if json_output:
        typer.echo(json.dumps(overview.as_dict(), indent=2))
    else:
        show_overview(overview)


@weights.command("show")
def show_weights(
    version: VersionArgument,
    config: ConfigOption = None,
    registry: RegistryOption = None,
    json_output: JsonOption = False,
) -> None:
    """Show a version's manifest: where it comes from, what it holds, how it was judged."""
    from services.weights_command import registry_settings, version_manifest
    from services.weights_view import show_version

    manifest = version_manifest(registry_settings(config, registry), version)
    if json_output:
        typer.echo(manifest.to_json())
    else:
        show_version(manifest)


@weights.command("log")
def log_weights(
    limit: Annotated[int, typer.Option(min=1, help="Latest entries to print.")] = 50,
    config: ConfigOption = None,
    registry: RegistryOption = None,
    json_output: JsonOption = False,
) -> None:
    """Print the audit trail: what was published and decided, when, by whom, and why."""
    from services.weights_command import read_log, registry_settings
    from services.weights_view import show_log

    events = read_log(registry_settings(config, registry), limit)
    if json_output:
        typer.echo(json.dumps([event.model_dump() for event in events], indent=2))
    else:
        show_log(events)


@weights.command("promote")
def promote_weights(
    version: VersionArgument,
    reason: ReasonOption = "",
    by: ByOption = None,
    dry_run: DryRunOption = False,
    config: ConfigOption = None,
    registry: RegistryOption = None,
    json_output: JsonOption = False,
) -> None:
    """Make a version stable, for all replicas, whatever its canary has shown so far."""
    _decide("promote", version, reason, by, dry_run, config, registry, json_output)


@weights.command("revoke")
def revoke_weights(
    version: VersionArgument,
    reason: ReasonOption,
    by: ByOption = None,
    dry_run: DryRunOption = False,
    config: ConfigOption = None,
    registry: RegistryOption = None,
    json_output: JsonOption = False,
) -> None:
    """Withdraw a version and quarantine its content: the same weights are never accepted again."""
    _decide("revoke", version, reason, by, dry_run, config, registry, json_output)


@weights.command("rollback")
def roll_back_weights(
    version: Annotated[
        int, typer.Argument(min=0, max=2**53, help="Version to go back to; 0 is the base drafter.")
    ],
    reason: ReasonOption,
    by: ByOption = None,
    dry_run: DryRunOption = False,
    config: ConfigOption = None,
    registry: RegistryOption = None,
    json_output: JsonOption = False,
) -> None:
    """Make an earlier version stable again, and revoke all later ones."""
    _decide("rollback", version, reason, by, dry_run, config, registry, json_output)


@keys.command("new")
def new_key(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Whose it is, for logs.")],
    tenant: Annotated[str, typer.Option(help="Whose requests may learn from one another.")] = "",
    admin: Annotated[bool, typer.Option("--admin", help="For administration instead of the API.")] = False,
    json_output: JsonOption = False,
) -> None:
    """Make a key and the line of the configuration that lets it in."""
    from services.keys_command import make_key

    made = make_key(name, tenant, admin=admin)
    typer.echo(json.dumps({"key": made.key, "config": made.config}, indent=2) if json_output else made)


@index.command("snapshot")
def snapshot_index(
    keep: Annotated[int, typer.Option(min=1, help="Snapshots of each collection that stay.")] = 7,
    config: ConfigOption = None,
    json_output: JsonOption = False,
) -> None:
    """Have the Qdrant server make a snapshot of the token index, and delete old ones."""
    from services.index_snapshot import snapshot
    from services.settings import load_config

    made = snapshot(load_config(config).semantic, keep)
    typer.echo(json.dumps(made, indent=2) if json_output else "\n".join(made) or "there is no index yet")


def _decide(
    kind: DecisionKind,
    version: int,
    reason: str,
    by: str | None,
    dry_run: bool,
    config: Path | None,
    registry: str | None,
    json_output: bool,
) -> None:
    from evospec.wire import Decision
    from services.weights_command import decide, login_name, registry_settings

    decision = Decision(kind=kind, version=version, by=by or login_name(), reason=reason)
    outcome = decide(registry_settings(config, registry), decision, dry_run=dry_run)
    typer.echo(json.dumps(outcome.as_dict(), indent=2) if json_output else outcome)


def main() -> None:
    """Entry point."""
    app(prog_name="evospec")
