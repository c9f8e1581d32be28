"""`evospec serve`: everything on this machine, until it is told to stop."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable

import typer

from evospec.config import Config
from evospec.errors import EvoSpecError
from services.addresses import is_local
from services.interrupts import interrupt_once
from services.local_cluster import LocalCluster

CHECK_S = 1.0  # signals are handled at least this often


def run(config: Config, *, verbose: bool, reload: Callable[[], Config] | None = None) -> None:
    """Serves until SIGINT or SIGTERM, and stops all that it started.

    Args:
        reload: reads the configuration anew; on SIGHUP its limits are applied, without a restart.

    Raises:
        EvoSpecError: the configuration can't be served.
    """
    interrupt_once()
    cluster = LocalCluster(config, verbose=verbose)
    typer.echo("starting …", err=True)
    try:
        with cluster:
            interrupt_once()  # Ray put a handler of its own in place
            hung_up = threading.Event()
            signal.signal(signal.SIGHUP, lambda *_: hung_up.set())
            models = [one.served_name for one in config.each_model()]
            _warn_if_open(config)
            typer.echo(f"serving {', '.join(models)} at {cluster.url}/v1 (Ctrl-C stops)", err=True)
            typer.echo(f"dashboard at {cluster.url}/dashboard", err=True)
            while True:
                if hung_up.wait(CHECK_S) and reload is not None:
                    hung_up.clear()
                    _reconfigure(cluster, reload)
    except KeyboardInterrupt:
        typer.echo("stopped", err=True)


def print_serve_config(config: Config) -> None:
    """Prints what `run` would run as a Serve config; nothing is started or looked up.

    Raises:
        EvoSpecError: see `services.serve_config.serve_config`.
    """
    from services.serve_config import dump  # imports Ray

    typer.echo(dump(config), nl=False)


def _warn_if_open(config: Config) -> None:
    host = config.serve.host
    if not config.access.keys and not is_local(host):
        typer.echo(
            f"warning: no API key is configured, and {host} may be reached from elsewhere: "
            "see `evospec keys new`",
            err=True,
        )


def _reconfigure(cluster: LocalCluster, reload: Callable[[], Config]) -> None:
    """Whatever is wrong with the new configuration, serving goes on with the old one."""
    try:
        cluster.reconfigure(reload())
    except EvoSpecError as error:
        typer.echo(f"limits stay as they are: {error}", err=True)
    else:
        typer.echo("limits applied", err=True)
