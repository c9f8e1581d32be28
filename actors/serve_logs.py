"""Our own log records, told with Ray Serve's: in its files, in its format, with its request ids."""

from __future__ import annotations

import logging

_OURS = ("evospec", "actors", "services")


def join_serve_logs() -> None:
    """Call in the constructor of a deployment, when Serve has set up its logger."""
    serve = logging.getLogger("ray.serve")
    for name in _OURS:
        logger = logging.getLogger(name)
        logger.setLevel(serve.level)
        logger.handlers = list(serve.handlers)
        logger.propagate = False
