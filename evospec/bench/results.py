"""The result file of every bench: what ran where, and one row per policy, arm and domain."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from pydantic import Field, JsonValue, ValidationError

from evospec.bench.align_records import Alignment, UpdateCosts
from evospec.bench.costs import ArmCosts
from evospec.bench.record import Record
from evospec.bench.stream_records import Stream
from evospec.bench.turn_speed import TurnSpeed
from evospec.errors import EvoSpecError

SCHEMA = 1
FILE_NAME = "results.json"
PLAIN = "plain"  # the policy that drafts nothing
FULL = "full"  # the policy that scores all rows

Spread = tuple[float, float]  # lower and upper quartile


def shown_name(name: str) -> str:
    """A model's name as results show it: of a path, the last part."""
    return Path(name).name if Path(name).expanduser().exists() else name


class Machine(Record):
    cpu: str
    cores: int = Field(description="Cores this process may use.")
    memory_gb: float
    gpu: str | None
    gpus: int
    gpu_memory_gb: float
    system: str
    python: str
    torch: str
    transformers: str
    copy_gb_per_s: float | None = Field(
        None, description="10^9 bytes read and written per second by one large copy on the decoding device."
    )


class Breakdown(Record):
    """Mean milliseconds of each part of a cycle, measured in two passes of their own.

    The first is not looked into: it gives `cycle_ms`. The second one is under a stopwatch, whose marks
    slow the host down. On a CUDA device the parts that the device works on are the second's, and
    `host_ms` is what they leave of `cycle_ms`: all parts together are the cycle as it is without marks.
    On a CPU, where marks cost next to nothing, all parts are the second's and add up to `watched_ms`.

    Attributes:
        cycles: cycles of the first pass, by how they drafted.
        cycle_ms: of the first pass.
        watched_ms: the same plans in the second.
        draft_layer_ms: the drafter's fusion and layer, at all steps.
        draft_head_ms: scoring the active rows and choosing tokens, at all steps.
        target_layers_ms: the target's pass over last tokens and draft, up to the head.
        target_head_ms: the target's head, and deciding what stands.
        vocabulary_ms: writing active rows.
        host_ms: all the rest: scheduling, observing, waiting.
    """

    cycles: dict[str, int]
    cycle_ms: float
    watched_ms: float
    draft_layer_ms: float
    draft_head_ms: float
    target_layers_ms: float
    target_head_ms: float
    vocabulary_ms: float
    host_ms: float

    @property
    def marks_ms(self) -> float:
        """What the stopwatch costs a cycle."""
        return self.watched_ms - self.cycle_ms


class Run(Record):
    """One arm on one domain.

    Attributes:
        arm: how the drafter was adapted: none, lora, full-parameter.
        tokens_per_s: median over batches of tokens by wall time, prompt processing included;
            0 when the policy failed.
        speedup: median over batches of tokens_per_s over plain decoding's on the same batch.
        acceptance_length: tokens per cycle and request that drafted, the bonus token included.
        acceptance_by_position: accepted / attempted; a position never attempted is absent.
        active_rows: LM head rows the drafter scores, mean over cycles; 0 without a drafter.
        coverage: share of the target's tokens that were active; 0 without a drafter.
        draft_ms: per cycle; so is verify_ms. A peer's whole cycle counts as verify_ms.
        peak_memory_mb: of the process while this policy decoded; all policies share the models.
            None when it was not measured.
        identical_to_plain: whether the output is plain decoding's; None when that can't be
            compared token by token (sampling) or was not.
        near_ties: emitted tokens that were not the target's first choice when its output was
            recomputed in one pass, but within rounding of it (bfloat16 only).
        largest_gap: greatest logit difference among them.
        failure: why the policy failed.
        part: of a paper bench that it was measured in; empty elsewhere.
        label: the arm as it was written: the policy, with its drafting where that is not the run's.
        drafting: how the arm was told to draft; None where it does not, or is a peer.
        plan_shares: share of cycles that drafted so.
        share_of_full: of the acceptance length of the arm that drafts so and scores all rows, in the same
            domain; None without one.
        head_us: scoring the active rows once and choosing tokens, by `breakdown`.
        tokens_per_cycle: per request, cycles without a draft included.
        cycle_ms: draft_ms and verify_ms together.
        reused_prompt_tokens: of the prompts, not processed: an earlier one had the same beginning.
        ttft_ms: median over requests of the time to the first token.
        slowest_request: least of the requests' tokens by the time from their batch's beginning to their
            last token, over plain decoding's of the same request.
        slow_requests: share of the requests for which that is below 0.95.
        captures: CUDA graphs captured in the timed turns, which they make slower.
        learning_share: what was learned after a batch's last token took, of the time up to it: median. Where
            requests keep coming, it is learned beside them.
        decode_tokens_per_s: median over batches, without prompt processing and the tokens it yields.
        decode_speedup: median over batches of its ratio to plain decoding's.
        predicted_speedup: what tokens_per_cycle and cycle_ms say of decode_speedup.
        device_seconds: the same as `seconds`, by CUDA events; None without a GPU.
        roofline_ms: a cycle's bytes by the copy bandwidth; roofline_share is its part of cycle_ms.
        roofline_tokens_per_s: of all requests, were every cycle that fast.
    """

    target: str
    drafter: str | None
    policy: str
    arm: str
    domain: str
    batch: int
    tokens: int
    cycles: int
    tokens_per_s: float
    acceptance_length: float
    acceptance_by_position: tuple[float, ...]
    active_rows: float
    coverage: float
    draft_ms: float
    verify_ms: float
    peak_memory_mb: float | None
    identical_to_plain: bool | None

    prompts: int
    seconds: float
    tokens_per_s_quartiles: Spread
    speedup: float | None = None
    speedup_quartiles: Spread | None = None
    near_ties: int = 0
    largest_gap: float = 0.0
    status: Literal["ok", "failed"] = "ok"
    failure: str | None = None

    part: str = ""
    label: str = ""
    drafting: str | None = None
    plan_shares: dict[str, float] = Field(default_factory=dict)
    share_of_full: float | None = None
    head_us: float | None = None
    tokens_per_cycle: float | None = None
    cycle_ms: float | None = None
    reused_prompt_tokens: int = 0
    ttft_ms: float | None = None
    ttft_ms_quartiles: Spread | None = None
    slowest_request: float | None = None
    slow_requests: float | None = None
    captures: int = 0
    learning_share: float = 0.0
    decode_tokens_per_s: float | None = None
    decode_tokens_per_s_quartiles: Spread | None = None
    decode_speedup: float | None = None
    decode_speedup_quartiles: Spread | None = None
    predicted_speedup: float | None = None
    device_seconds: float | None = None
    roofline_ms: float | None = None
    roofline_share: float | None = None
    roofline_tokens_per_s: float | None = None
    breakdown: Breakdown | None = None

    @property
    def name(self) -> str:
        return self.label or self.policy

    @property
    def failed(self) -> bool:
        return self.status == "failed"


class Results(Record):
    """A whole result file. `settings` are the command's, with file names but no folders.

    Attributes:
        alignment: a stream that drafters adapted to; what that took is in `updates`.
        turns: speeds behind the medians, where they were kept.
    """

    schema_version: int = Field(SCHEMA, alias="schema")
    machine: Machine
    git: str
    settings: dict[str, JsonValue]
    runs: tuple[Run, ...]
    arms: tuple[ArmCosts, ...] = ()
    stream: Stream | None = None
    alignment: Alignment | None = None
    updates: tuple[UpdateCosts, ...] = ()
    turns: tuple[TurnSpeed, ...] = ()

    @classmethod
    def joined(cls, parts: Sequence[Results]) -> Results:
        """Results of one command, measured one after the other; machine and settings are the first's."""
        first = parts[0]
        runs = tuple(run for part in parts for run in part.runs)
        arms = tuple(arm for part in parts for arm in part.arms)
        turns = tuple(turn for part in parts for turn in part.turns)
        return first.model_copy(update={"runs": runs, "arms": arms, "turns": turns})

    @property
    def batches(self) -> list[int]:
        """Batch sizes, in the order in which they were measured."""
        return list(dict.fromkeys(run.batch for run in self.runs))

    @property
    def failures(self) -> list[Run]:
        return [run for run in self.runs if run.failed]

    def to_json(self) -> str:
        return self.model_dump_json(by_alias=True, indent=2) + "\n"

    def write(self, folder: Path) -> Path:
        path = folder / FILE_NAME
        path.write_text(self.to_json(), encoding="utf-8")
        return path

    @classmethod
    def read(cls, path: Path) -> Results:
        """Raises EvoSpecError unless the file is a result of this schema."""
        try:
            results = cls.model_validate_json(path.read_bytes())
        except OSError as error:
            raise EvoSpecError(f"cannot read {path}: {error.strerror}") from None
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(part) for part in first["loc"])
            raise EvoSpecError(f"{path} is not a result file: {where}: {first['msg']}") from None
        if results.schema_version != SCHEMA:
            raise EvoSpecError(f"{path} has schema {results.schema_version}, this program reads {SCHEMA}")
        return results
