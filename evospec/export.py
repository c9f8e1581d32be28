"""`evospec export`: takes a drafter to another engine."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import AutoConfig

from evospec.errors import EvoSpecError
from evospec.models.drafter_store import check_drafter, load_drafter, read_config, resolve_drafter
from evospec.models.inspection import TargetCard, inspect_target
from evospec.models.layouts.exporter import Export, Verifier, choose_rows, write_export
from evospec.models.layouts.settings import Layout
from evospec.models.loading import is_hub_id, load_tokenizer
from evospec.models.tables import TokenTables
from evospec.vocab.policy import head_core

DEFAULT_ROWS = 32_000  # what published EAGLE-3 heads have


@dataclass(frozen=True, slots=True)
class ExportPlan:
    """What to write.

    Attributes:
        rows: head rows to keep, the most frequent tokens first; None: DEFAULT_ROWS, or all there are.
        verifier: what the other engine loads the target by; None: its Hub id or folder.
    """

    layout: Layout = "speculators"
    rows: int | None = None
    verifier: str | None = None
    speculative_tokens: int = 5


@dataclass(frozen=True, slots=True)
class ExportReport:
    """What was written, and how it is served."""

    folder: Path
    rows: int
    vocab_size: int
    serve: str

    def summary(self) -> str:
        return f"{self.folder}: {self.rows:,} of {self.vocab_size:,} head rows; {self.serve}"


def export_drafter(drafter: str, target: str, out: Path, plan: ExportPlan) -> ExportReport:
    """Writes the drafter that `drafter` names, for the target that `target` names.

    Raises:
        EvoSpecError: drafter or target can't be had or don't fit each other, too few or too many
            rows are asked for, or `out` can't be written.
    """
    card = inspect_target(target)
    folder = resolve_drafter(drafter, target, card.fingerprint)
    described = read_config(folder, card.layer_count)
    check_drafter(described, card.fingerprint, card.hidden_size, card.vocab_size, strict=True)
    device = torch.device("cpu")
    loaded = load_drafter(folder, torch.bfloat16, device, card.layer_count)
    tables = loaded.drafter.tables(TokenTables.from_folder(card.folder, torch.bfloat16, device))
    verifier = _verifier(card, target, plan.verifier)
    available = tables.head.shape[0]
    rows = min(DEFAULT_ROWS, available) if plan.rows is None else plan.rows
    ordered = head_core(tables, loaded.core_ranks.numpy(), available, verifier.special_ids)
    special = len(set(ordered.tolist()) & set(verifier.special_ids))
    if not special <= rows <= available:
        raise EvoSpecError(
            f"--rows {rows}: this drafter's head has {available} rows, {special} of which stand for special "
            "tokens and must stay"
        )
    token_ids = choose_rows(ordered, rows, tables.vocab_size)
    export = Export(loaded.drafter, tables, token_ids, verifier, plan.speculative_tokens)
    write_export(export, plan.layout, out)
    return ExportReport(out, export.rows, tables.vocab_size, _how_to_serve(plan, verifier, out))


def _verifier(card: TargetCard, target: str, name: str | None) -> Verifier:
    settings = AutoConfig.from_pretrained(card.folder, local_files_only=True)
    tokenizer = load_tokenizer(target)
    eos = settings.eos_token_id
    ends = eos if isinstance(eos, list) else [eos]
    special = {*tokenizer.all_special_ids, tokenizer.eos_token_id, *ends} - {None}
    known = target if is_hub_id(target) and not Path(target).exists() else str(card.folder.resolve())
    return Verifier(
        name=name or known,
        architectures=tuple(settings.architectures or ()),
        layer_count=card.layer_count,
        max_positions=settings.max_position_embeddings,
        special_ids=tuple(sorted(special)),
    )


def _how_to_serve(plan: ExportPlan, verifier: Verifier, out: Path) -> str:
    if plan.layout == "speculators":
        return f"serve with `vllm serve {out}`"
    return (
        f"serve with `vllm serve {verifier.name} --speculative-config "
        f'\'{{"method": "eagle3", "model": "{out}", "num_speculative_tokens": {plan.speculative_tokens}}}\'`'
    )
