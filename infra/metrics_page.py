"""Writes docs/metrics.md from the definitions of the metrics: `python infra/metrics_page.py`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from actors import control_metrics, metrics
from services import request_metrics

PAGE = Path(__file__).resolve().parent.parent / "docs" / "metrics.md"

_HEAD = """# Metrics

Every process exports its counters through Ray, which offers them to Prometheus on each node
([Ray's guide](https://docs.ray.io/en/latest/cluster/metrics.html) says how Prometheus finds the nodes;
on Kubernetes a PodMonitor does). Names are vLLM's where vLLM has the same value, without its prefix, and
begin with `evospec_` otherwise. Ray puts `ray_` in front of all of them, and `_total` at the end of counters;
the tables show names as Prometheus sees them. Values are brought up to date every 5 seconds, those of the
gateway at once.

Metrics of replicas and gateway also have Ray Serve's labels `application`, `deployment` and `replica`, and
all have Ray's own (`SessionName`, `NodeAddress`, …). Label values are bounded: a name for
each model that is served, a position for each draft token, a kind for each adapter of the bank, and paths
that are none of the API's count as `other`.

Useful ratios:

- acceptance length τ: `1 + rate(ray_spec_decode_num_accepted_tokens_total[5m])
  / rate(ray_spec_decode_num_drafts_total[5m])`
- acceptance rate at position i: `rate(ray_spec_decode_num_accepted_tokens_per_pos_total{position="i"}[5m])
  / rate(ray_evospec_num_attempted_tokens_per_pos_total{position="i"}[5m])`; positions count from 0, and a
  position that was never attempted has no rate
- coverage: `rate(ray_evospec_covered_tokens_total[5m]) / rate(ray_evospec_coverable_tokens_total[5m])`

`infra/grafana/evospec.json` is a dashboard of these metrics, `infra/prometheus/alerts.yaml` has alert rules;
a test holds both against the definitions that this page is made from. Ray Serve's own metrics
(`ray_serve_*`) are there as well. What is logged beside them says `docs/dashboard.md`.

This page is made by `python infra/metrics_page.py`.
"""


@dataclass(frozen=True, slots=True)
class Exported:
    """A metric as Prometheus sees it."""

    name: str
    kind: str
    labels: tuple[str, ...]
    description: str

    @property
    def series(self) -> tuple[str, ...]:
        """Names of its series."""
        if self.kind == "histogram":
            return tuple(f"{self.name}_{part}" for part in ("bucket", "sum", "count"))
        return (self.name,)


def exported() -> dict[str, list[Exported]]:
    """All metrics, by who exports them."""
    return {
        "Decoding replicas": list(_of_status(metrics.REPLICA, ("model_name",))),
        "Gateway": list(_of_gateway()),
        "Aligner": list(_of_status(control_metrics.ALIGNER, ("model_name",))),
        "Rollout controller": list(_of_status(control_metrics.ROLLOUT, ("model_name",))),
    }


def page() -> str:
    """The whole page."""
    parts = [_HEAD]
    for part, found in exported().items():
        rows = [_row(one) for one in found]
        parts.append(
            f"## {part}\n\n| name | kind | labels | meaning |\n|---|---|---|---|\n" + "\n".join(rows) + "\n"
        )
    return "\n".join(parts)


def _of_status(series: tuple[metrics.Series, ...], tags: tuple[str, ...]) -> Iterator[Exported]:
    for one in series:
        labels = tags if one.label is None else (*tags, one.label)
        yield Exported(_seen(one.name, one.kind), one.kind, labels, one.description)


def _of_gateway() -> Iterator[Exported]:
    for one in request_metrics.GATEWAY:
        kind = "histogram" if one.buckets else "counter"
        yield Exported(_seen(one.name, kind), kind, one.labels, one.description)


def _seen(name: str, kind: str) -> str:
    return f"ray_{name}_total" if kind == "counter" else f"ray_{name}"


def _row(one: Exported) -> str:
    labels = ", ".join(f"`{label}`" for label in one.labels)
    return f"| `{one.name}` | {one.kind} | {labels} | {one.description} |"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
