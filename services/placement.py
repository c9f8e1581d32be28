"""Where in a cluster something runs."""

from __future__ import annotations

SHARE = 0.001  # of a resource that only says where: a thousand fit on a node


def marked(resource: str | None) -> dict[str, float]:
    """Ray's `resources` of what runs on the nodes that have a custom resource; None is anywhere."""
    return {} if resource is None else {resource: SHARE}
