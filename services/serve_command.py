"""`evospec serve`: everything on this machine, until it is told to stop."""

from __future__ import annotations

import threading

import typer

from evospec.config import Config
from services.interrupts import interrupt_once
from services.local_cluster import LocalCluster
from services.preflight import is_local

CHECK_S = 1.0  # signals are handled at least this often


def run(config: Config, *, verbose: bool) -> None:
    """Serves until SIGINT or SIGTERM, and stops all that it started.

    Raises:
        EvoSpecError: the configuration can't be served.
    """
    interrupt_once()
    cluster = LocalCluster(config, verbose=verbose)
    typer.echo("starting …", err=True)
    try:
        with cluster:
            interrupt_once()  # Ray put a handler of its own in place
            model = config.serve.model_name or config.model.target
            if not config.access.keys and not is_local(config.serve.host):
                typer.echo(
                    f"warning: no API key is configured, and {config.serve.host} may be reached from "
                    "elsewhere: see `evospec keys new`",
                    err=True,
                )
            typer.echo(f"serving {model} at {cluster.url}/v1 (Ctrl-C stops)", err=True)
            forever = threading.Event()
            while not forever.wait(CHECK_S):
                continue
    except KeyboardInterrupt:
        typer.echo("stopped", err=True)
