"""Toy drafter and target distributions over a small vocabulary, and a test of what decoding emits."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from scipy.stats import chisquare
from torch import Tensor

from evospec.decoding.draft import Draft, Proposal
from evospec.decoding.sampling import Purpose, SamplingBatch, SamplingParams, draw, uniforms
from evospec.decoding.verify import Verdict, verify

VOCAB = 12
Verify = Callable[[Draft, Tensor, SamplingBatch, Tensor], Verdict]


@dataclass(frozen=True, slots=True)
class Toy:
    """A first-order language model: row t holds the logits after token t, float32 [VOCAB, VOCAB]."""

    target: Tensor
    drafter: Tensor

    @classmethod
    def random(cls, seed: int, agreement: float = 0.5) -> Toy:
        generator = torch.Generator().manual_seed(seed)
        target = torch.randn(VOCAB, VOCAB, generator=generator) * 1.5
        noise = torch.randn(VOCAB, VOCAB, generator=generator) * 1.5
        return cls(target, agreement * target + (1 - agreement) * noise)


def batch(params: SamplingParams, rows: int, first_seed: int) -> SamplingBatch:
    shared = SamplingBatch.of([params] * rows, torch.device("cpu"))
    return SamplingBatch(
        temperature=shared.temperature,
        top_p=shared.top_p,
        top_k=shared.top_k,
        seeds=torch.arange(first_seed, first_seed + rows),
        any_sampled=shared.any_sampled,
        truncated=shared.truncated,
    )


def draft(toy: Toy, last: Tensor, length: int, active: Tensor | None, sampling: SamplingBatch) -> Draft:
    """Drafts chains as ChainDrafter does, from a table in place of a network."""
    tokens, choices, proposals = [], [], []
    for step in range(length):
        logits = toy.drafter[last]
        if active is not None:
            logits = logits[:, active]
        proposal = torch.softmax(logits / sampling.temperature[:, None], dim=-1)
        number = uniforms(sampling.seeds, torch.full((len(last), 1), step), Purpose.DRAFT)[:, 0]
        choice = draw(proposal, number)
        last = choice if active is None else active[choice]
        tokens.append(last)
        choices.append(choice)
        proposals.append(proposal)
    return Draft(
        tokens=torch.stack(tokens, dim=1),
        lengths=torch.full((len(last),), length),
        proposal=Proposal(
            torch.stack(choices, dim=1),
            torch.stack(proposals, dim=1),
            None if active is None else active.clone(),  # as it is now
        ),
    )


def mistold(made: Draft, row_ids: Tensor | None) -> Draft:
    """A draft that says it was made from other rows."""
    assert made.proposal is not None
    return replace(made, proposal=replace(made.proposal, row_ids=row_ids))


def emitted_counts(
    toy: Toy,
    params: SamplingParams,
    *,
    draws: int,
    active: Tensor | None,
    length: int = 2,
    check: Verify = verify,
    drafted_with: Tensor | None = None,
    first_seed: int = 7,
) -> np.ndarray:
    """Histogram of the first two tokens emitted after token 0, int64 [VOCAB, VOCAB].

    A second token that the first cycle did not reach comes from a second cycle.

    Args:
        drafted_with: row ids in force when drafting, while verification is told `active`: a stale map.
    """
    used = active if drafted_with is None else drafted_with
    sampling = batch(params, draws, first_seed)
    start = torch.zeros(draws, dtype=torch.int64)
    made = draft(toy, start, length, used, sampling)
    told = made if drafted_with is None else mistold(made, active)
    context = torch.cat((start[:, None], made.tokens), dim=1)
    first = check(told, toy.target[context], sampling, torch.ones(draws, dtype=torch.int64))
    tokens = first.tokens[:, :2].clone()
    short = (first.accepted == 0).nonzero()[:, 0]
    again = batch(params, draws, first_seed + 10_000_019)
    rest = SamplingBatch(
        again.temperature[short],
        again.top_p[short],
        again.top_k[short],
        again.seeds[short],
        again.any_sampled,
        again.truncated,
    )
    made = draft(toy, tokens[short, 0], length, used, rest)
    told = made if drafted_with is None else mistold(made, active)
    context = torch.cat((tokens[short, :1], made.tokens), dim=1)
    second = check(told, toy.target[context], rest, torch.full((len(short),), 2))
    tokens[short, 1] = second.tokens[:, 0]
    counts = np.zeros((VOCAB, VOCAB), dtype=np.int64)
    np.add.at(counts, (tokens[:, 0].numpy(), tokens[:, 1].numpy()), 1)
    return counts


def expected_shares(toy: Toy, params: SamplingParams) -> np.ndarray:
    """What plain sampling from the target would give, float64 [VOCAB, VOCAB]; written independently."""
    first = _reference(toy.target[0].double().numpy(), params)
    rows = np.stack([_reference(row, params) for row in toy.target.double().numpy()])
    return first[:, None] * rows


def _reference(logits: np.ndarray, params: SamplingParams) -> np.ndarray:
    weights = np.exp((logits - logits.max()) / params.temperature)
    order = np.argsort(-weights, kind="stable")
    keep = np.zeros(len(weights), dtype=bool)
    keep[order[: params.top_k or len(weights)]] = True
    weights = np.where(keep, weights, 0.0)
    shares = weights / weights.sum()
    if params.top_p < 1.0:
        reached = 0.0
        for token in order:
            if reached >= params.top_p:
                shares[token] = 0.0
            reached += shares[token]
    return shares / shares.sum()


def p_value(counts: np.ndarray, shares: np.ndarray) -> float:
    """Chi-square test of counts against shares; impossible cells must be empty, rare ones are pooled."""
    counts, shares = counts.ravel(), shares.ravel()
    if counts[shares == 0].any():
        return 0.0
    expected = shares * counts.sum()
    common = expected >= 10
    observed = np.append(counts[common], counts[~common].sum())
    wanted = np.append(expected[common], expected[~common].sum())
    if wanted[-1] < 1e-9:
        observed, wanted = observed[:-1], wanted[:-1]
    return float(chisquare(observed, wanted * observed.sum() / wanted.sum()).pvalue)
