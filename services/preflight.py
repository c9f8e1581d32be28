"""What can be known to go wrong before anything is started: models, addresses, the port."""

from __future__ import annotations

import errno
import socket

import torch

from evospec.align.build import check_alignable
from evospec.config import Config, ServeConfig
from evospec.errors import EvoSpecError
from evospec.models.drafter_store import read_config
from evospec.models.inspection import TargetCard, inspect_drafter, inspect_target
from evospec.models.loading import pick_device
from services.registry import open_registry
from services.token_index import open_token_index


class PortTakenError(EvoSpecError):
    """The HTTP endpoint can't listen where it should."""


def check(config: Config) -> TargetCard:
    """Checks whatever a config names.

    Raises:
        EvoSpecError: model or drafter can't be had or don't fit; a configured server is not
            reachable; the port is taken.
    """
    check_port(config.serve)
    pick_device(config.model.device)
    if config.registry.url is not None:
        open_registry(config.registry).close()
    target = inspect_target(config.model.target)
    folder = inspect_drafter(config.model, target)
    if folder is not None and config.alignment.enabled:
        check_alignable(read_config(folder, target.layer_count))
    if config.semantic.enabled and config.semantic.url is not None:
        open_token_index(config.semantic, target.fingerprint.target, target.hidden_size).close()
    return target


def check_port(serve: ServeConfig) -> int:
    """The port to listen on; a free one where `serve.port` is 0.

    Raises:
        PortTakenError: another program listens there, or the address is not this machine's.
    """
    try:
        family, kind, _, _, address = socket.getaddrinfo(serve.host, serve.port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind) as probe:
            # As the server does: a port that only waits for old connections to time out is free.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
            port: int = probe.getsockname()[1]
    except OSError as error:
        taken = error.errno == errno.EADDRINUSE
        reason = "another program listens there" if taken else error.strerror or str(error)
        raise PortTakenError(
            f"can't listen on {serve.host}:{serve.port}: {reason}; choose another serve.port (--port)"
        ) from None
    return port


def threads_per_replica(config: Config) -> int:
    """CPU threads of one replica; where the config leaves them open, an equal share of PyTorch's own.

    Replicas of all models share.
    """
    replicas = sum(model.serve.most_replicas for model in config.each_model())
    return config.model.threads or max(torch.get_num_threads() // replicas, 1)
