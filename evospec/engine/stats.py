"""Counters of an engine: numerators and denominators, never ratios."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(slots=True)
class EngineStats:
    """Monotonic counters and a few gauges, all host-side.

    vLLM's `spec_decode_*` counters map onto `drafts`, `draft_tokens`,
    `accepted_tokens` and `accepted_per_position`.
    """

    requests_finished: int = 0
    requests_cancelled: int = 0
    prompt_tokens: int = 0
    reused_prompt_tokens: int = 0  # of prompts, not processed: an earlier request had the same beginning
    emitted_tokens: int = 0
    cycles: int = 0
    drafts: int = 0  # (request, cycle) pairs that verified at least one draft token
    draft_tokens: int = 0  # verified; of a tree, all nodes
    accepted_tokens: int = 0
    attempted_per_position: list[int] = field(default_factory=list)
    accepted_per_position: list[int] = field(default_factory=list)
    covered_tokens: int = 0  # emitted tokens that were active when drafted from the active rows
    coverable_tokens: int = 0
    vocabulary_rows_changed: int = 0
    adapter_swaps: int = 0
    requests_per_choice: dict[int, int] = field(default_factory=dict)  # 0: of no kind; kind i is i + 1
    cycles_per_plan: dict[str, int] = field(default_factory=dict)  # how cycles drafted
    requests_untraced: int = 0  # that came while recording was behind, or over its budget
    plan_switches: int = 0  # changes of the controller's mind on how to draft
    draft_seconds: float = 0.0
    verify_seconds: float = 0.0
    prefill_seconds: float = 0.0
    # gauges
    running: int = 0
    waiting: int = 0
    active_rows: int = 0
    rows_by_source: dict[str, int] = field(default_factory=dict)  # replaced, never changed
    vocabulary_epoch: int = 0
    adapter_version: int = 0
    draft_plan: str = ""

    @property
    def acceptance_length(self) -> float:
        """Tokens per cycle and request, bonus token included; 1.0 before any draft."""
        return 1.0 + self.accepted_tokens / self.drafts if self.drafts else 1.0

    @property
    def coverage(self) -> float:
        return self.covered_tokens / self.coverable_tokens if self.coverable_tokens else 1.0

    def count_cycle(self, plan: str) -> None:
        self.cycles += 1
        self.cycles_per_plan[plan] = self.cycles_per_plan.get(plan, 0) + 1

    def count_choice(self, choice: int | None) -> None:
        """Adds a request that drafts so; None: where all draft alike."""
        if choice is not None:
            self.requests_per_choice[choice] = self.requests_per_choice.get(choice, 0) + 1

    def count_draft(self, drafted: int, accepted: int, nodes: int) -> None:
        """Adds one verified draft of `nodes` tokens, `drafted` deep.

        A position never attempted stays unobserved.
        """
        if not drafted:
            return
        self.drafts += 1
        self.draft_tokens += nodes
        self.accepted_tokens += accepted
        missing = drafted - len(self.attempted_per_position)
        self.attempted_per_position.extend([0] * missing)
        self.accepted_per_position.extend([0] * missing)
        # Position i is attempted only when all before it were accepted.
        for position in range(min(accepted + 1, drafted)):
            self.attempted_per_position[position] += 1
        for position in range(accepted):
            self.accepted_per_position[position] += 1
