"""Checkpoints of a training run: one safetensors file, whose header holds the record as JSON.

One file, so that a rename puts tensors and record in place together.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from evospec.errors import EvoSpecError
from evospec.models.drafter import DrafterConfig
from evospec.training.disk import disk_errors, replacing
from evospec.training.order import Position
from evospec.training.plan import TrainingPlan
from evospec.training.progress import Progress

FOLDER = "checkpoint"
FILE = "state.safetensors"
_RECORD = "evospec"  # key in the header


class Record(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, ser_json_inf_nan="constants")


class Measurement(Record):
    """Acceptance length on the held-out conversations that all measurements of a run share."""

    share: float
    tokens: int
    acceptance_length: float


class Initial(Record):
    """The drafter whose weights a run began with."""

    name: str
    fingerprint: str


class Identity(Record):
    """What a run is made of: a checkpoint continues only what has the same."""

    plan: TrainingPlan
    config: DrafterConfig
    corpus: str
    initial: Initial | None = None


class CheckpointRecord(Record):
    """All but the tensors.

    Attributes:
        started_at: ISO 8601, UTC.
        probed: held-out documents that `measurements` are over.
    """

    format: Literal[1] = 1
    evospec: str
    started_at: str
    identity: Identity
    progress: Progress
    position: Position
    probed: int
    measurements: tuple[Measurement, ...]


@dataclass(frozen=True, slots=True)
class Checkpoint:
    record: CheckpointRecord
    tensors: dict[str, Tensor]

    @property
    def nbytes(self) -> int:
        return sum(tensor.nbytes for tensor in self.tensors.values())


class CheckpointStore:
    """The checkpoint of an output folder: the latest that was written whole."""

    def __init__(self, out: Path) -> None:
        self._out = out
        self.path = out / FOLDER / FILE
        self.step: int | None = None  # of the checkpoint there, None while there is none

    def exists(self) -> bool:
        return self.path.is_file()

    def require(self) -> None:
        """Raises EvoSpecError unless there is one."""
        if not self.exists():
            raise EvoSpecError(f"nothing to resume in {self._out}: it holds no {FOLDER}/{FILE}")

    def save(self, checkpoint: Checkpoint) -> None:
        """Replaces the checkpoint there; until the new one is whole, the old one stays.

        Raises:
            DiskError: it can't be written.
        """
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in checkpoint.tensors.items()}
        metadata = {_RECORD: checkpoint.record.model_dump_json()}
        with disk_errors(self.path.parent, self.advice(checkpoint.nbytes)):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with replacing(self.path) as partial:
                save_file(tensors, partial, metadata=metadata)
        self.step = checkpoint.record.progress.step

    def load(self) -> Checkpoint:
        """Raises EvoSpecError: there is none, or it is damaged or of another release."""
        self.require()
        try:
            with safe_open(self.path, framework="pt") as file:
                text = (file.metadata() or {}).get(_RECORD, "")
                names = file.keys()
                tensors = {name: file.get_tensor(name) for name in names}
            record = CheckpointRecord.model_validate_json(text)
        except (OSError, SafetensorError) as error:
            raise EvoSpecError(f"checkpoint {self.path} cannot be read: {error}") from None
        except ValidationError as error:
            where = ".".join(str(part) for part in error.errors()[0]["loc"])
            raise EvoSpecError(
                f"{self.path} is not a checkpoint of this release ({where or 'no record'}: "
                f"{error.errors()[0]['msg']}): begin anew from its drafter with --init {self._out}"
            ) from None
        self.step = record.progress.step
        return Checkpoint(record, tensors)

    def advice(self, nbytes: int) -> str:
        """What to do when the disk is full."""
        room = f"free {max(nbytes, 2**20) / 2**20:,.0f} MiB there"
        if self.step is None:
            return f"{room} and begin again"
        return f"the checkpoint of step {self.step} is whole: {room}, then continue with --resume"


def check_resumable(saved: Identity, now: Identity, out: Path) -> None:
    """Refuses to continue a run as another.

    Raises:
        EvoSpecError: naming the first thing that differs.
    """
    reasons = saved.plan.differences(now.plan)
    if saved.config.target_fingerprint != now.config.target_fingerprint:
        reasons.insert(0, "it is of another target")
    elif saved.config.tokenizer_fingerprint != now.config.tokenizer_fingerprint:
        reasons.insert(0, "the target's tokenizer differs")
    elif saved.corpus != now.corpus:
        reasons.insert(0, "the corpus is another")
    elif saved.config != now.config and not reasons:
        same_width = saved.config.intermediate_size == now.config.intermediate_size
        reasons.append("the drafter has another shape" if same_width else "--mlp-factor differs")
    elif saved.initial != now.initial and not reasons:
        reasons.append("--init differs")
    if reasons:
        raise EvoSpecError(
            f"cannot resume {out}: {'; '.join(reasons)}: use the settings it began with, or begin a "
            f"new run with --init {out} and another --out"
        )
