"""Writes what the manifests take from elsewhere: `python infra/kubernetes/render.py`.

For each overlay rendered.yaml, from its evospec.yaml; and infra/prometheus/rules.yaml, from alerts.yaml.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import yaml

from evospec.config import Config
from evospec.errors import EvoSpecError
from services.serve_config import dump
from services.settings import load_config

FOLDER = Path(__file__).resolve().parent
OVERLAYS = FOLDER / "overlays"
PROMETHEUS = FOLDER.parent / "prometheus"
_HEAD = "# Made by infra/kubernetes/render.py from {source}: change that.\n"


class TooLargeError(EvoSpecError):
    """A replica does not fit the workers of an overlay."""


class _Writer(yaml.SafeDumper):
    """Texts of several lines stand as they are."""


def _text(writer: yaml.SafeDumper, value: str) -> yaml.ScalarNode:
    return writer.represent_scalar("tag:yaml.org,2002:str", value, style="|" if "\n" in value else None)


_Writer.add_representer(str, _text)


def rendered(folder: Path) -> str:
    """An overlay's rendered.yaml. It is no resource of the cluster: kustomize only copies from it."""
    config = load_config(folder / "evospec.yaml")
    resource = {
        "apiVersion": "evospec/v1",
        "kind": "Rendered",
        "metadata": {
            "name": "rendered",
            "annotations": {"config.kubernetes.io/local-config": "true"},
        },
        "spec": {"workers": workers(config), "serveConfigV2": dump(config)},
    }
    return _written(resource, "evospec.yaml")


def workers(config: Config) -> dict[str, int]:
    """How many pods the worker group `replicas` has, and how many of them no drain of nodes may take.

    A pod holds as many replicas as fit on its one GPU, or a single one without GPUs.

    Raises:
        TooLargeError: a replica needs more than a GPU.
    """
    models = config.each_model()
    fewest = sum(_pods(model.serve.replicas, model.serve.gpus_per_replica) for model in models)
    most = sum(_pods(model.serve.most_replicas, model.serve.gpus_per_replica) for model in models)
    return {"min": fewest, "max": most, "undisturbed": max(fewest - 1, 1)}


def alert_rules() -> str:
    """The alert rules as the Prometheus operator's resource."""
    groups = yaml.safe_load((PROMETHEUS / "alerts.yaml").read_text(encoding="utf-8"))["groups"]
    resource = {
        "apiVersion": "monitoring.coreos.com/v1",
        "kind": "PrometheusRule",
        "metadata": {"name": "evospec", "labels": {"release": "prometheus"}},
        "spec": {"groups": groups},
    }
    return _written(resource, "alerts.yaml")


def pages() -> dict[Path, str]:
    """Every file that is made here, with what it should hold."""
    overlays = sorted(folder.parent for folder in OVERLAYS.glob("*/evospec.yaml"))
    return {folder / "rendered.yaml": rendered(folder) for folder in overlays} | {
        PROMETHEUS / "rules.yaml": alert_rules()
    }


def _pods(replicas: int, gpus: float) -> int:
    if gpus > 1:
        raise TooLargeError(f"serve.gpus_per_replica: {gpus:g}: a worker has one GPU")
    return math.ceil(replicas / math.floor(1 / gpus)) if gpus else replicas


def _written(resource: dict[str, Any], source: str) -> str:
    return _HEAD.format(source=source) + yaml.dump(resource, Dumper=_Writer, sort_keys=False, width=100)


if __name__ == "__main__":
    for path, content in pages().items():
        path.write_text(content, encoding="utf-8")
