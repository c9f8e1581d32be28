"""What the aligner and the rollout controller count, as Prometheus metrics; see `actors.metrics`."""

from __future__ import annotations

from actors.aligner import AlignerStatus
from actors.rollout_controller import RolloutStatus
from actors.series import Series, counter, gauge

ALIGNER: tuple[Series[AlignerStatus], ...] = (
    counter("evospec_aligner_traces_received", "Traces received.", lambda s: s.progress.received),
    counter(
        "evospec_aligner_traces_dropped",
        "Traces dropped, because too many waited.",
        lambda s: s.progress.dropped,
    ),
    counter("evospec_aligner_traces_admitted", "Traces kept to learn from.", lambda s: s.progress.admitted),
    counter(
        "evospec_aligner_traces_refused",
        "Traces of other models or damaged.",
        lambda s: s.trainer.refused_traces,
    ),
    counter("evospec_aligner_steps", "Training steps.", lambda s: s.progress.steps),
    counter(
        "evospec_aligner_steps_skipped",
        "Training steps whose outcome was not finite.",
        lambda s: s.trainer.skipped_steps,
    ),
    counter(
        "evospec_aligner_candidates", "Candidates judged on held-out traces.", lambda s: s.progress.gated
    ),
    counter(
        "evospec_aligner_candidates_rejected", "Candidates not published.", lambda s: s.progress.rejected
    ),
    counter("evospec_aligner_returns", "Returns to another version's weights.", lambda s: s.progress.returns),
    counter("evospec_aligner_published", "Versions published.", lambda s: s.publisher.published),
    counter(
        "evospec_aligner_registry_failures",
        "Registry calls that failed.",
        lambda s: s.publisher.registry_failures,
    ),
    gauge("evospec_aligner_loss", "Training loss of the latest step.", lambda s: s.progress.loss or 0.0),
    gauge(
        "evospec_aligner_superseded",
        "1 once another aligner has taken over.",
        lambda s: float(s.publisher.superseded),
    ),
)

ROLLOUT: tuple[Series[RolloutStatus], ...] = (
    counter("evospec_rollout_promoted", "Versions promoted by the controller.", lambda s: s.counts.promoted),
    counter("evospec_rollout_revoked", "Versions revoked by the controller.", lambda s: s.counts.revoked),
    counter(
        "evospec_rollout_decisions_refused",
        "Decisions that the registry did not carry out.",
        lambda s: s.counts.decisions_refused,
    ),
    counter(
        "evospec_rollout_registry_failures",
        "Registry calls that failed.",
        lambda s: s.counts.registry_failures,
    ),
    counter(
        "evospec_rollout_replica_failures",
        "Looks at which no replica answered.",
        lambda s: s.counts.replica_failures,
    ),
    gauge("evospec_rollout_stable_version", "Version for all replicas.", lambda s: s.stable),
    gauge("evospec_rollout_candidate_version", "Version on trial, 0: none.", lambda s: s.candidate),
    gauge("evospec_rollout_canaries", "Replicas that run the candidate.", lambda s: len(s.canary)),
)
