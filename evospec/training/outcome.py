"""The end of a run: what it came to, and the files that say so."""

from __future__ import annotations

import torch

from evospec import __version__
from evospec.align.acceptance import AcceptanceCounts
from evospec.bench.machine import describe_machine, git_commit
from evospec.bench.results import shown_name
from evospec.models.catalogue import BUILT_IN
from evospec.training.card import write_card
from evospec.training.disk import disk_errors
from evospec.training.provenance import Provenance, TargetRecord, TrainingResult, now
from evospec.training.run import RunInputs, TrainingRun
from evospec.training.throughput import Work, bfloat16_peak
from evospec.training.trainer import DrafterTrainer


def conclude(run: TrainingRun, inputs: RunInputs, target_name: str) -> TrainingResult:
    """Measures what was trained, and writes provenance and card beside it.

    Raises:
        DiskError: they can't be written; the drafter is there all the same.
    """
    result = _result(run, inputs, run.measure())
    provenance = _provenance(run, inputs, target_name, result)
    with disk_errors(inputs.out, "the drafter is there; free 1 MiB, then --resume writes what is missing"):
        provenance.write(inputs.out)
        write_card(provenance, inputs.out)
    return result


def _result(run: TrainingRun, inputs: RunInputs, counts: AcceptanceCounts) -> TrainingResult:
    progress = run.trainer.progress
    return TrainingResult(
        acceptance_length=counts.acceptance_length if counts.cycles else None,
        acceptance_by_step=counts.acceptance_by_step,
        held_out=len(inputs.split.held_out),
        held_out_kind="on-policy" if inputs.split.on_policy else "corpus",
        accuracy_by_step=progress.accuracy,
        corpus_tokens=inputs.corpus.token_count,
        trained_tokens=progress.tokens,
        optimizer_steps=progress.step,
        minutes=progress.elapsed / 60,
        tokens_per_s=progress.tokens_per_s,
        peak_share=peak_share(run.trainer),
        measurements=tuple(run.measurements),
    )


def peak_share(trainer: DrafterTrainer) -> float | None:
    """Part of the device's bfloat16 peak that training came to; None where the peak is not known."""
    target, progress = trainer.target, trainer.progress
    if target.device.type != "cuda" or target.dtype is not torch.bfloat16 or not progress.tokens:
        return None
    peak = bfloat16_peak(torch.cuda.get_device_name(target.device))
    if peak is None:
        return None
    work = Work.of(target, trainer.drafter, trainer.plan.steps)
    return work.share_of(peak, progress.tokens_per_s, progress.roots / progress.tokens)


def _provenance(run: TrainingRun, inputs: RunInputs, target_name: str, result: TrainingResult) -> Provenance:
    target = run.trainer.target
    known = BUILT_IN.get(target_name)
    return Provenance(
        evospec=__version__,
        commit=git_commit(),
        machine=describe_machine(),
        device="cuda" if target.device.type == "cuda" else "cpu",
        dtype=str(target.dtype).removeprefix("torch."),
        target=TargetRecord(
            name=shown_name(target_name),
            fingerprint=target.fingerprint.target,
            tokenizer=target.fingerprint.tokenizer,
            licence=None if known is None else known.licence,
        ),
        data=inputs.corpus.manifest,
        training=run.trainer.plan,
        parameters=sum(parameter.numel() for parameter in run.trainer.drafter.parameters()),
        initial=inputs.identity.initial,
        result=result,
        started_at=run.started_at,
        finished_at=now(),
    )
