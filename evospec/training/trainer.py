"""Trains an EAGLE-3 drafter against its target: training-time test, full-vocabulary forward KL."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from time import monotonic

import numpy as np
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from evospec.align.acceptance import AcceptanceCounts, acceptance_length
from evospec.errors import EvoSpecError
from evospec.models.drafter import Drafter
from evospec.models.kv_cache import Window
from evospec.models.target import Target
from evospec.models.unroll import unroll
from evospec.training.batch import Batch
from evospec.training.corpus import Corpus, Document, length_batches
from evospec.training.fused_kl import KLResult, Terms, fused_kl, kl_terms

_ATTENTION = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]


@dataclass(frozen=True, slots=True)
class TrainingPlan:
    """How a drafter is trained. Values are ours unless a source is given.

    Attributes:
        minutes, optimizer_steps: training ends at whichever comes first.
        steps: draft steps unrolled (EAGLE-3 uses 5 to 7).
        step_decay: weight of step j is step_decay ** j (EAGLE-3: 0.8).
        tokens_per_batch: padded tokens per optimiser step.
        logit_tokens: positions whose full-vocabulary logits exist at one time.
        longest: documents are cut to this many tokens.
    """

    minutes: float = 2.0
    optimizer_steps: int | None = None
    learning_rate: float = 1e-3
    warmup: float = 0.03
    weight_decay: float = 0.01
    clip: float = 1.0
    steps: int = 5
    step_decay: float = 0.8
    tokens_per_batch: int = 16_384
    logit_tokens: int = 4_096
    longest: int = 640
    seed: int = 0


@dataclass(slots=True)
class Progress:
    """Where training stands; smoothed over recent steps."""

    step: int = 0
    tokens: int = 0
    seconds: float = 0.0
    share: float = 0.0
    loss: float = math.nan
    accuracy: list[float] = field(default_factory=list)

    @property
    def tokens_per_s(self) -> float:
        return self.tokens / self.seconds if self.seconds else 0.0


class DrafterTrainer:
    """Owns the drafter's float32 masters and the optimiser; the target only runs forward."""

    def __init__(self, target: Target, drafter: Drafter, plan: TrainingPlan) -> None:
        self.target = target
        self.drafter = drafter.to(device=target.device, dtype=torch.float32).train()
        self.plan = plan
        self._scale: Tensor | None = None
        self._optimizer = torch.optim.AdamW(
            drafter.parameters(), lr=plan.learning_rate, betas=(0.9, 0.95), weight_decay=plan.weight_decay
        )
        on_gpu = target.device.type == "cuda"
        self._terms: Terms = torch.compile(kl_terms, dynamic=True) if on_gpu else kl_terms

    def train(self, corpus: Corpus, indices: np.ndarray, report: Callable[[Progress], None]) -> Progress:
        """Trains on these documents of the corpus until the plan is carried out.

        Raises:
            EvoSpecError: the loss is not finite; weights are those of the last good step.
        """
        plan, progress = self.plan, Progress()
        rng = np.random.default_rng(plan.seed)
        lengths = np.minimum(corpus.lengths()[indices], plan.longest)
        began = monotonic()
        while True:
            for chosen in length_batches(lengths, plan.tokens_per_batch, rng):
                progress.seconds = monotonic() - began
                progress.share = progress.seconds / (60 * plan.minutes)
                if plan.optimizer_steps is not None:
                    progress.share = max(progress.share, progress.step / plan.optimizer_steps)
                if progress.share >= 1.0:
                    return progress
                self._set_rate(progress.share)
                documents = [corpus[int(index)] for index in indices[chosen]]
                self._step(Batch.of(documents, plan.steps, plan.longest, self.target.device), progress)
                report(progress)

    def _step(self, batch: Batch, progress: Progress) -> None:
        observed = batch.observed()
        decay = self.plan.step_decay ** torch.arange(self.plan.steps, device=observed.device)
        weights = observed * decay[:, None, None] / observed[0].sum()
        result = self._losses(batch, weights)
        self._optimizer.zero_grad(set_to_none=True)
        result.losses.sum().backward()
        norm = torch.nn.utils.clip_grad_norm_(self.drafter.parameters(), self.plan.clip)
        summary = torch.cat(
            (norm[None], result.losses.sum()[None].detach(), _rates(result.matches, observed))
        )
        values: list[float] = summary.tolist()  # the step's one device synchronisation
        if not all(math.isfinite(value) for value in values[:2]):
            raise EvoSpecError(
                f"training step {progress.step}: loss or gradient is not finite; "
                "lower --learning-rate (the weights of the last good step are kept)"
            )
        self._optimizer.step()
        _smooth(progress, values[1], values[2:])
        progress.step += 1
        progress.tokens += int(batch.lengths.sum())

    def _losses(self, batch: Batch, weights: Tensor) -> KLResult:
        hidden, features = self._run_target(batch)
        if self._scale is None:
            self._scale = features.float().pow(2).mean(dim=(0, 1)).sqrt().clamp(min=1e-4)
            with torch.no_grad():
                torch.nn.init.normal_(self.drafter.fc.weight, std=features.shape[-1] ** -0.5)
        embeddings = self.target.tables.embed(batch.tokens[:, 1:])
        # cuDNN's attention builds a plan for each new shape, which costs more than it saves here.
        with self._autocast(), sdpa_kernel(_ATTENTION):
            drafts = torch.stack(
                list(
                    unroll(
                        self.drafter,
                        (features[:, : batch.width] / self._scale).to(features.dtype),
                        embeddings,
                        batch.steps,
                    )
                )
            )  # [steps, rows, width, hidden]
        rows_at_once = max(1, self.plan.logit_tokens // batch.tokens.shape[1])
        head = self.target.tables.head
        return fused_kl(
            drafts.to(head.dtype), hidden, head, weights, rows_at_once=rows_at_once, terms=self._terms
        )

    @torch.no_grad()
    def _run_target(self, batch: Batch) -> tuple[Tensor, Tensor]:
        rows, width = batch.tokens.shape
        cache = self.target.new_cache(rows, width)
        starts = torch.zeros(rows, dtype=torch.int64, device=batch.tokens.device)
        with sdpa_kernel(_ATTENTION):
            output = self.target.forward(batch.tokens, Window(0, starts, width, width), cache)
        if output.features is None:
            raise ValueError("the target taps no layers")
        # Leaving inference mode takes a copy: autograd must be able to save these.
        return output.hidden.clone(), output.features.clone()

    def _set_rate(self, share: float) -> None:
        plan = self.plan
        warm = min(1.0, share / plan.warmup) if plan.warmup else 1.0
        rate = plan.learning_rate * warm * (0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * min(share, 1.0))))
        for group in self._optimizer.param_groups:
            group["lr"] = rate

    def _autocast(self) -> AbstractContextManager[object]:
        if self.target.dtype is torch.bfloat16:
            return torch.autocast(self.target.device.type, torch.bfloat16)
        return nullcontext()

    @torch.no_grad()
    def evaluate(self, documents: Sequence[Document], rows: int = 8) -> AcceptanceCounts:
        """Greedy chains over the answers of documents, simulated cycle by cycle."""
        counts = AcceptanceCounts()
        for first in range(0, len(documents), rows):
            part = documents[first : first + rows]
            batch = Batch.of(part, self.plan.steps, self.plan.longest, self.target.device)
            matches = self._losses(batch, batch.observed().float()).matches
            # Roots whose whole draft lies inside the answer.
            whole = (batch.answered() & batch.observed()).all(dim=0)  # [rows, width]
            for row in range(len(part)):
                counts += acceptance_length(matches[:, row, whole[row]].T)
        return counts

    @torch.no_grad()
    def export(self) -> Drafter:
        """The trained drafter, ready for raw features: the feature scale is folded into `fc`."""
        drafter = Drafter(self.drafter.config)
        drafter.load_state_dict(self.drafter.state_dict())
        if self._scale is not None:
            drafter.fc.weight.div_(self._scale.cpu())
        return drafter.requires_grad_(False).eval()


def _rates(matches: Tensor, observed: Tensor) -> Tensor:
    """Share of observed positions where the drafter is right, per step [steps]."""
    return (matches & observed).sum(dim=(1, 2)) / observed.sum(dim=(1, 2)).clamp(min=1)


def _smooth(progress: Progress, loss: float, accuracy: list[float], keep: float = 0.95) -> None:
    if not progress.accuracy:
        progress.loss, progress.accuracy = loss, accuracy
        return
    progress.loss = keep * progress.loss + (1 - keep) * loss
    progress.accuracy = [
        keep * old + (1 - keep) * new for old, new in zip(progress.accuracy, accuracy, strict=True)
    ]
