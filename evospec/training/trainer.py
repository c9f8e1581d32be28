"""Trains an EAGLE-3 drafter against its target: training-time test, loss over the full vocabulary."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from time import perf_counter

import numpy as np
import torch
from torch import Tensor

from evospec.align.acceptance import AcceptanceCounts, acceptance_length
from evospec.errors import EvoSpecError
from evospec.models.drafter import Drafter
from evospec.models.kv_cache import Window
from evospec.models.target import Target
from evospec.models.unroll import DraftStep, unroll
from evospec.training.batch import Batch
from evospec.training.corpus import Corpus, Document
from evospec.training.ema import WeightAverage
from evospec.training.fused_kl import KernelKL, KLOps, KLResult, LossShape, TorchKL, fused_kl
from evospec.training.memory import memory_errors, training_advice
from evospec.training.order import Position, batches_from
from evospec.training.plan import TrainingPlan
from evospec.training.progress import Progress, StepFigures, is_timed
from evospec.training.schedule import rate_factor
from evospec.training.state import TrainerState
from evospec.training.warm_start import start_from_target


class DivergedError(EvoSpecError):
    """Loss or gradient is not finite. The weights are those of the step before."""


class DrafterTrainer:
    """Owns the drafter's float32 masters and the optimiser; the target only runs forward.

    `progress` and `position` say where it stands; with `state` they are all that a resumed
    run needs.
    """

    def __init__(self, target: Target, drafter: Drafter, plan: TrainingPlan) -> None:
        self.target = target
        self.drafter = drafter.to(device=target.device, dtype=torch.float32).train()
        self.plan = plan
        self.progress = Progress()
        self.position = Position()
        self._scale: Tensor | None = None
        on_gpu = target.device.type == "cuda"
        self._optimizer = torch.optim.AdamW(
            self.drafter.parameters(),
            lr=plan.learning_rate,
            betas=(0.9, 0.95),
            weight_decay=plan.weight_decay,
            fused=on_gpu,
        )
        self._average = WeightAverage(self.drafter, plan.ema) if plan.ema else None
        self._kl: KLOps = KernelKL() if on_gpu else TorchKL()
        self._draft_step = DraftStep.compiled() if on_gpu else DraftStep.plain()

    def train(self, corpus: Corpus, indices: np.ndarray, report: Callable[[Progress], None]) -> None:
        """Trains on these documents of the corpus, from where it stands to the end of the plan.

        Args:
            report: called after each step; what it raises ends training between two steps.

        Raises:
            DivergedError: the loss is not finite.
            OutOfMemoryError: naming the option to lower.
        """
        plan, progress = self.plan, self.progress
        lengths = np.minimum(corpus.lengths()[indices], plan.longest)
        began, first = perf_counter() - progress.elapsed, progress.step
        for serving in batches_from(self.position, lengths, plan.tokens_per_batch, plan.seed):
            progress.spend(perf_counter() - began, plan)
            if progress.share >= 1.0:
                return
            documents = [corpus[int(index)] for index in indices[serving.documents]]
            with memory_errors(lambda: training_advice(plan, self.drafter.config)):
                self._step(documents, timed=is_timed(progress.step - first))
            self.position = serving.following
            progress.spend(perf_counter() - began, plan)
            report(progress)

    def _step(self, documents: Sequence[Document], *, timed: bool) -> None:
        started = perf_counter()
        rate = self._set_rate()
        batch = Batch.of(documents, self.plan.steps, self.plan.longest, self.target.device)
        observed = batch.observed
        decay = self.plan.step_decay ** torch.arange(self.plan.steps, device=observed.device)
        weights = observed * decay[:, None] / max(observed.shape[1], 1)  # [steps, roots]
        result = self._losses(batch, weights)
        self._optimizer.zero_grad(set_to_none=True)
        result.losses.sum().backward()
        norm = torch.nn.utils.clip_grad_norm_(self.drafter.parameters(), self.plan.clip)
        summary = torch.cat(
            (norm[None], result.losses.sum()[None].detach(), _rates(result.matches, observed))
        )
        values: list[float] = summary.tolist()  # the step's one device synchronisation
        if not all(math.isfinite(value) for value in values[:2]):
            raise DivergedError(f"training step {self.progress.step + 1}: loss or gradient is not finite")
        self._optimizer.step()
        if self._average is not None:
            self._average.update(self.progress.step)
        self.progress.add(
            StepFigures(
                loss=values[1],
                accuracy=tuple(values[2:]),
                grad_norm=values[0],
                rate=rate,
                tokens=int(batch.lengths.sum()),
                roots=observed.shape[1],
                seconds=perf_counter() - started if timed else 0.0,
            )
        )

    def start_from(self, drafter: Drafter, documents: Sequence[Document]) -> None:
        """Takes over the weights of an exported drafter.

        Its `fc` reads raw features. The feature scale is measured anew, on these documents,
        and taken out of `fc` again, so that the drafter computes what it did.
        """
        self.drafter.load_state_dict(drafter.state_dict())
        batch = Batch.of(documents, self.plan.steps, self.plan.longest, self.target.device)
        _, features = self._run_target(batch)
        self._scale = feature_scale(features)
        with torch.no_grad():
            self.drafter.fc.weight.mul_(self._scale)
        if self._average is not None:
            self._average = WeightAverage(self.drafter, self.plan.ema)

    @property
    def state(self) -> TrainerState:
        return TrainerState(self.drafter, self._optimizer, self._average)

    def dump(self) -> dict[str, Tensor]:
        """All tensors of the training state, by name."""
        scale = {} if self._scale is None else {"scale": self._scale}
        return self.state.dump() | scale

    def load(self, tensors: dict[str, Tensor]) -> None:
        """Restores what `dump` gave.

        Raises:
            EvoSpecError: tensors are missing, or of another shape.
        """
        self.state.load(tensors)
        scale = tensors.get("scale")
        self._scale = None if scale is None else scale.to(self.target.device)

    def _losses(self, batch: Batch, weights: Tensor) -> KLResult:
        hidden, features = self._run_target(batch)
        scale = self._begin(features) if self._scale is None else self._scale
        embeddings = self.target.tables.embed(batch.tokens[:, 1:])
        fitted = (features[:, : batch.width] / scale).to(features.dtype)
        with self._autocast():
            states = unroll(self.drafter, fitted, embeddings, batch.steps, self._draft_step)
            # `index_select`: the gradient of plain indexing sorts its indices first.
            drafts = torch.stack([state.flatten(0, 1).index_select(0, batch.roots) for state in states])
        head = self.target.tables.head
        return fused_kl(
            drafts.to(head.dtype),  # [steps, roots, hidden]
            hidden.flatten(0, 1),
            batch.decided,
            head,
            weights,
            roots_at_once=self.plan.logit_tokens,
            shape=LossShape(self.plan.focus, self.plan.unreached),
            ops=self._kl,
        )

    @torch.no_grad()
    def _begin(self, features: Tensor) -> Tensor:
        """First weights of the fusion; returns the scale that features are divided by from now on."""
        self._scale = feature_scale(features)
        if self.plan.warm_start and start_from_target(self.drafter, self.target):
            self.drafter.fc.weight.mul_(self._scale)
        else:
            torch.nn.init.normal_(self.drafter.fc.weight, std=features.shape[-1] ** -0.5)
        return self._scale

    @torch.no_grad()
    def _run_target(self, batch: Batch) -> tuple[Tensor, Tensor]:
        rows, width = batch.tokens.shape
        cache = self.target.new_cache(rows, width)
        window = Window.from_start(rows, width, batch.tokens.device)
        output = self.target.forward(batch.tokens, window, cache)
        if output.features is None:
            raise ValueError("the target taps no layers")
        # Leaving inference mode takes a copy: autograd must be able to save these.
        return output.hidden.clone(), output.features.clone()

    def _set_rate(self) -> float:
        progress, plan = self.progress, self.plan
        rate = plan.learning_rate * rate_factor(progress.share, progress.step, plan.warmup)
        for group in self._optimizer.param_groups:
            group["lr"] = rate
        return rate

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
            matches = self._losses(batch, batch.observed.float()).matches
            # Roots whose whole draft lies inside the document.
            whole = batch.observed[-1].split(batch.roots_per_row)
            for match, inside in zip(matches.split(batch.roots_per_row, dim=1), whole, strict=True):
                counts += acceptance_length(match[:, inside].T)
        return counts

    def averaged(self) -> AbstractContextManager[None]:
        """Inside, the drafter has the averaged weights, if the plan averages them."""
        return nullcontext() if self._average is None else self._average.applied()

    @torch.no_grad()
    def export(self) -> Drafter:
        """The trained drafter, ready for raw features: the feature scale is folded into `fc`."""
        drafter = Drafter(self.drafter.config)
        with self.averaged():
            drafter.load_state_dict(self.drafter.state_dict())
        if self._scale is not None:
            drafter.fc.weight.div_(self._scale.cpu())
        return drafter.requires_grad_(False).eval()


def feature_scale(features: Tensor) -> Tensor:
    """Root mean square of each feature [taps * hidden], of features [rows, width, taps * hidden]."""
    return features.float().pow(2).mean(dim=(0, 1)).sqrt().clamp(min=1e-4)


def _rates(matches: Tensor, observed: Tensor) -> Tensor:
    """Share of observed roots where the drafter is right, per step [steps]."""
    return (matches & observed).sum(dim=1) / observed.sum(dim=1).clamp(min=1)
