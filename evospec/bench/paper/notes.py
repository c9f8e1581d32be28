"""What tables of a paper report mean."""

from __future__ import annotations

NOTES = """\
- Every ratio is a median over batches of tokens/s on that batch by the other arm's tokens/s on the same
  batch, in the same run, averaged over domains; quartiles are over all these batches. Means are over the
  specialised domains (all but general). *decode alone* leaves out prompt processing and the tokens that it
  yields.
- Arms take turns (A B C A B C ...) in one process, on the same prompts of split `eval`. Adapters and what
  vocabularies know come from split `adapt` alone.
- *best static list*: the fastest of FR-Spec's sizes on the very prompts that are reported, the choice that
  favours it most. FR-Spec and VocabTrim rank tokens by text that the target wrote itself, which favours
  them over lists from foreign text; so both have the same list at the same size, and what they differ by is
  the noise of a run.
- *τ*: tokens per cycle and request, the bonus token included; *of full τ*: of the acceptance length of the
  drafter without an adapter that scores all rows. *coverage*: share of the target's tokens that were
  active.
- *EvoSpec, alignment only* scores all rows with the drafter that has learned; *full-parameter online* is
  standard online adaptation, all parameters with a loss over the whole vocabulary, as its stream left it.
- *SlimSpec's model*: gain over the full vocabulary = rho (1 + kappa) / (1 + nu kappa), with rho the share
  of tokens per cycle, kappa the full head's time by all other time of a cycle, nu the head's time by the
  full one's; measured: decode tokens/s. *whole cycles say*: the same by times of whole cycles. *kept
  between cycles*: what was measured by that.
- *Parts of a cycle* are from a pass of their own over each domain's first batch; `host` is what they leave
  of a cycle when nobody looks. *timed cycle* is from the turns that count.
- *requests to recover*: the first request after a switch with a coverage of 0.97, over all switches; of
  what learns, the requests before the first window whose gain is 0.95 of the topic's plateau.
- *output*: plain decoding's, token by token; in bfloat16 it may differ where the target's best logits are
  within rounding of each other (near-ties). An arm that differs elsewhere has failed, and its speed is not
  given.
"""
TIMING_NOTE = """\
**Timing only.** Target and drafter have the true sizes and random weights: nothing is accepted, nothing is
said. *head* is scoring the rows once and choosing a token, *verify* the target's pass over a chain, its
head and the decision. The last column is what the rows would bring over FR-Spec if acceptance behaved as it
did for the target of this report.
"""
