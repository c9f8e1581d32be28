"""All that a plan takes for granted, in words and numbers."""

from __future__ import annotations

from services.plan import figures
from services.plan.figures import Figure
from services.plan.question import Question


def assumptions(question: Question) -> tuple[Figure, ...]:
    """Figures that the plan rests on, and what the question and the configuration set."""
    return (*_scaling(question), *_settings(question), *figures.EVERY)


def _scaling(question: Question) -> tuple[Figure, ...]:
    """GPUs and models that were not measured, first: what is estimated for them is the weakest part."""
    gpu = question.hardware.gpu
    kind = "measured" if gpu.measured else "assumed"
    return (
        Figure(gpu.memory_gb, "GB", f"memory of {gpu.name}", "published", "its data sheet"),
        Figure(
            gpu.bandwidth_tb_s,
            "TB/s",
            f"memory bandwidth of {gpu.name}",
            "published",
            "its data sheet" if kind == "measured" else "its data sheet; times are scaled by it, an estimate",
        ),
        Figure(
            gpu.tflops,
            "TFLOPS",
            f"bfloat16 of {gpu.name}, dense",
            "published",
            "its data sheet" if kind == "measured" else "its data sheet; times are scaled by it, an estimate",
        ),
    )


def _settings(question: Question) -> tuple[Figure, ...]:
    config, load, hardware = question.config, question.load, question.hardware
    rows: tuple[tuple[float, str, str, str], ...] = (
        (question.utilisation, "of a replica's most", "what replicas are loaded with", "--utilisation"),
        (question.max_wait_s, "s", "wait of 95 % of the requests, at most", "--max-wait"),
        (load.burstiness, "", "squared variation of the gaps between requests", "--burstiness"),
        (load.variation, "", "squared variation of how long requests take", "--variation"),
        (question.traced, "of the requests", "did not opt out of learning", "--traced"),
        (hardware.network_gbit, "Gbit/s", "network of each node", "--network"),
        (config.engine.max_length, "tokens", "room of a request, all of it held", "engine.max_length"),
        (
            config.alignment.trace_mb_per_s,
            "MiB/s",
            "traces a replica makes at most",
            "alignment.trace_mb_per_s",
        ),
        (config.alignment.steps_per_trace, "steps", "that a trace pays for", "alignment.steps_per_trace"),
        (config.alignment.rank, "", "rank of versions", "alignment.rank"),
        (
            config.alignment.successor_mb,
            "MiB",
            "successor tables of a version, full",
            "alignment.successor_mb",
        ),
        (config.registry.keep_versions, "", "versions kept", "registry.keep_versions"),
        (config.registry.poll_s, "s", "between a replica's looks at the registry", "registry.poll_s"),
        (config.semantic.refresh_tokens, "tokens", "between two look-ups", "semantic.refresh_tokens"),
        (config.semantic.max_points, "", "points kept", "semantic.max_points"),
    )
    return tuple(
        Figure(float(value), unit, meaning, "assumed", where) for value, unit, meaning, where in rows
    )
