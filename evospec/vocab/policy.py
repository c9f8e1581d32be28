"""From a policy's name to the policy, over the head that the drafter uses."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch

from evospec.config import VocabularyConfig
from evospec.errors import EvoSpecError
from evospec.models.tables import TokenTables
from evospec.vocab.active import ActiveRows
from evospec.vocab.budget import RowBudget
from evospec.vocab.context import ContextSource
from evospec.vocab.core import CoreLists, core_tokens
from evospec.vocab.dynamic import DynamicVocabulary, Sources
from evospec.vocab.head_rows import HeadView
from evospec.vocab.nanospec import NanoSpecVocabulary
from evospec.vocab.policy_name import PolicyName
from evospec.vocab.preview import PreviewView
from evospec.vocab.protocol import VocabularyPolicy
from evospec.vocab.retrieved import RetrievedSource
from evospec.vocab.static import StaticVocabulary
from evospec.vocab.statistical import StatisticalSource
from evospec.vocab.successors import SuccessorLimits
from evospec.vocab.verification import VerificationSource

CorpusRanks = Callable[[Path], np.ndarray]


def build_policy(
    config: VocabularyConfig,
    tables: TokenTables,
    core_ranks: np.ndarray,
    always: Sequence[int],
    max_batch: int,
    corpus_ranks: CorpusRanks | None = None,
    row_seconds: float = 0.0,
) -> VocabularyPolicy:
    """The policy that `config.policy` names.

    Args:
        core_ranks: token ids by falling frequency in the target's own text.
        always: end-of-sequence and special tokens, active whatever happens (where the head has a row for
            them).
        corpus_ranks: reads a list of that kind from a file.
        row_seconds: see `RowBudget`.

    Raises:
        EvoSpecError: an unknown policy, or a corpus file that can't be read.
    """
    name = PolicyName.parse(config.policy)
    match name.kind:
        case "full":
            return StaticVocabulary(HeadView(tables.head, tables.head_ids), tables.vocab_size)
        case "specvocab":
            preview = PreviewView.of(tables, rank=name.rank or 1, exact=name.rows or 1)
            return StaticVocabulary(preview, tables.vocab_size)
        case "fr-spec" | "vocabtrim":
            ranks = core_ranks
            if name.corpus is not None:
                if corpus_ranks is None:
                    raise EvoSpecError(f"{config.policy}: corpus files are not read here")
                ranks = corpus_ranks(name.corpus)
            chosen = head_core(tables, ranks, name.rows or 1, always)
            return StaticVocabulary(_select(tables, chosen), tables.vocab_size)
        case "nanospec":
            rows = ActiveRows(tables, config.capacity, config.half_life)
            return NanoSpecVocabulary(rows, head_core(tables, core_ranks, 0, always), config.context_window)
    rows = ActiveRows(tables, config.capacity, config.half_life)
    if name.sources is not None:
        config = config.model_copy(update={"sources": name.sources})

    def lists_of(ranks: np.ndarray) -> CoreLists:
        core = head_core(tables, ranks, config.core, always)
        frequent = head_core(tables, ranks, rows.capacity, ())
        return CoreLists(core, frequent[~np.isin(frequent, core)][: rows.capacity - len(core)])

    lists = lists_of(core_ranks)
    sources = dynamic_sources(config, rows, lists.core, max_batch)
    return DynamicVocabulary(rows, lists, sources, row_budget(rows, lists.core, row_seconds), lists_of)


def dynamic_sources(config: VocabularyConfig, rows: ActiveRows, core: np.ndarray, max_batch: int) -> Sources:
    """The sources that a config names, for a buffer of active rows."""
    chosen = config.sources
    # Requests may pin three quarters of what the core leaves; the rest stays for the other sources.
    window = min(config.context_window, (rows.capacity - len(core)) * 3 // 4 // max_batch)
    limits = successor_limits(config, config.successor_half_life)
    return Sources(
        context=ContextSource(rows, window) if "context" in chosen else None,
        verification=VerificationSource(config.top_k, config.prompt_ranked)
        if "verification" in chosen
        else None,
        statistical=StatisticalSource(rows.vocab_size, core, limits, config.tenants)
        if "statistical" in chosen
        else None,
        semantic=RetrievedSource() if "semantic" in chosen else None,
    )


def successor_limits(config: VocabularyConfig, half_life: int) -> SuccessorLimits:
    """What a statistical index keeps per tenant, here or in the aligner."""
    return SuccessorLimits(
        heads=config.successor_heads,
        successors=config.successors,
        window=config.successor_window,
        half_life=half_life,
    )


def is_statistical(config: VocabularyConfig) -> bool:
    """Whether a config's policy looks up what followed in earlier requests."""
    name = PolicyName.parse(config.policy)
    return name.kind == "evospec" and "statistical" in (name.sources or config.sources)


def row_budget(rows: ActiveRows, core: np.ndarray, row_seconds: float) -> RowBudget:
    """How many rows are kept active, of a buffer of them."""
    return RowBudget(least=2 * len(core), most=rows.capacity, row_seconds=row_seconds)


def head_core(tables: TokenTables, core_ranks: np.ndarray, size: int, always: Sequence[int]) -> np.ndarray:
    """The `size` most frequent tokens that have a head row, with those of `always` that do."""
    covered = None if tables.head_ids is None else tables.head_ids.cpu().numpy()
    return core_tokens(core_ranks, min(size, tables.head.shape[0]), tables.vocab_size, always, covered)


def _select(tables: TokenTables, token_ids: np.ndarray) -> HeadView:
    ids = torch.from_numpy(token_ids).to(tables.head.device)
    index = tables.head_index()
    return HeadView(tables.head.index_select(0, ids if index is None else index[ids]), ids)
