"""From prompts to batches that fit the models."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

from transformers import PreTrainedTokenizerBase

from evospec.bench.measure import Batch
from evospec.bench.prompts import Prompt
from evospec.bench.settings import DecodeSettings
from evospec.engine.request import Request, SamplingParams
from evospec.errors import EvoSpecError
from evospec.models.chat import encode_prompt

WARM_UP = "List a few everyday objects, and say in one sentence each what they are good for."
WARM_UP_TOKENS = 64  # enough for `auto` to look at each of its plans, in two rounds


@dataclass(frozen=True, slots=True)
class EncodedPrompt:
    prompt: Prompt
    token_ids: tuple[int, ...]


def encode(
    prompts: Sequence[Prompt], tokenizer: PreTrainedTokenizerBase, settings: DecodeSettings
) -> list[EncodedPrompt]:
    return [
        EncodedPrompt(prompt, encode_prompt(tokenizer, prompt.text, chat=settings.chat)) for prompt in prompts
    ]


def fitting(encoded: Sequence[EncodedPrompt], max_tokens: int, room: int) -> list[EncodedPrompt]:
    """Prompts that leave room for `max_tokens`; raises EvoSpecError when there is none."""
    kept = [one for one in encoded if len(one.token_ids) + max_tokens <= room]
    if not kept:
        raise EvoSpecError(
            f"no prompt fits the models' {room} positions with {max_tokens} tokens to generate: "
            "lower --max-tokens or shorten the prompts"
        )
    return kept


def make_batches(prompts: Sequence[EncodedPrompt], settings: DecodeSettings) -> list[Batch]:
    """Batches of one domain each, in the order of the prompts."""
    batches: list[Batch] = []
    for domain, group in groupby(enumerate(prompts), key=lambda item: item[1].prompt.domain):
        members = list(group)
        for start in range(0, len(members), settings.batch):
            requests = tuple(
                # Ids of different files may be equal; numbered ones are not.
                Request(f"{number}:{encoded.prompt.id}", encoded.token_ids, _sampling(settings, number))
                for number, encoded in members[start : start + settings.batch]
            )
            batches.append(Batch(len(batches), domain, requests))
    return batches


def warm_up_batch(tokenizer: PreTrainedTokenizerBase, settings: DecodeSettings) -> Batch:
    """A prompt of no domain, which leaves nothing in traces and index."""
    prompt_ids = encode_prompt(tokenizer, WARM_UP, chat=settings.chat)
    sampling = SamplingParams(temperature=settings.temperature, max_tokens=WARM_UP_TOKENS)
    requests = tuple(
        Request(f"warm-up/{row}", prompt_ids, sampling, trace=False) for row in range(settings.batch)
    )
    return Batch(-1, "warm-up", requests)


def longest(batches: Sequence[Batch]) -> int:
    """Most positions that a request of these needs."""
    return max(
        len(request.prompt_ids) + request.sampling.max_tokens
        for batch in batches
        for request in batch.requests
    )


def first_of_each_domain(batches: Sequence[Batch]) -> dict[str, Batch]:
    chosen: dict[str, Batch] = {}
    for batch in batches:
        chosen.setdefault(batch.domain, batch)
    return chosen


def _sampling(settings: DecodeSettings, number: int) -> SamplingParams:
    return SamplingParams(
        temperature=settings.temperature, seed=settings.seed + number, max_tokens=settings.max_tokens
    )
