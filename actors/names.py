"""Names that actors are found by. Nothing here needs Ray, which reads its environment when it is imported."""

from __future__ import annotations

NAMESPACE = "evospec"
ALIGNER = "aligner"
INDEX_HOST = "token-index"
ROLLOUT_CONTROLLER = "rollout-controller"
