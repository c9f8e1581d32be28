"""One request on a replica: the engine's tokens turned into text chunks, stop strings honoured."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence

from actors.emission import Emission, OutputStream
from actors.engine_loop import EngineLoop
from actors.generation import GenerationChunk, GenerationFailure, GenerationRequest, TokenLogprob
from evospec.engine.request import FinishReason, Request
from evospec.engine.text import TextStream, Tokenizer
from evospec.engine.token_scores import TokenScore
from evospec.engine.token_text import TokenTexts
from evospec.errors import EvoSpecError, InvalidRequestError


async def generate_text(
    loop: EngineLoop, tokenizer: Tokenizer, texts: TokenTexts, request: GenerationRequest
) -> AsyncGenerator[GenerationChunk | GenerationFailure]:
    """Yields one chunk per cycle, or as seldom as `request.chunk_s` says, the last one with a finish reason,
    or ends in one failure.

    When the consumer goes away (cancels or closes the iterator), the engine drops the request.
    """
    outputs = OutputStream()
    loop.admit(
        Request(
            request.id,
            request.prompt_ids,
            request.sampling,
            request.tenant,
            request.trace,
            request.logprobs,
        ),
        outputs.deliver,
    )
    text = TextStream(tokenizer, request.stop)
    engine_done = False
    clock = asyncio.get_running_loop().time
    not_before = clock()
    try:
        while not (engine_done or text.stopped):
            emissions = await outputs.take(not_before) if request.chunk_s else [await outputs.next()]
            engine_done = emissions[-1].output.finish_reason is not None
            not_before = clock() + request.chunk_s
            yield _chunk(emissions, text, texts)
    except InvalidRequestError as error:
        engine_done = True
        yield GenerationFailure("invalid", str(error), error.param)
    except EvoSpecError as error:
        engine_done = True
        yield GenerationFailure("failed", str(error))
    finally:
        if not engine_done:
            loop.cancel(request.id)


def _chunk(emissions: Sequence[Emission], text: TextStream, texts: TokenTexts) -> GenerationChunk:
    """What cycles add together; those behind a stop string do not count."""
    parts: list[str] = []
    tokens: list[int] = []
    scores: list[TokenScore] = []
    covered: list[bool] = []
    drafted = accepted = cycles = 0
    for last in emissions:
        output = last.output
        used = _push(output.tokens, text, parts)
        tokens += output.tokens[:used]
        scores += output.scores[:used]
        covered += output.covered[:used]
        drafted += output.drafted
        accepted += output.accepted
        cycles += 1
        if text.stopped:
            break
    if output.finish_reason is not None:
        parts.append(text.finish().text)
    finish_reason: FinishReason | None = "stop" if text.stopped else output.finish_reason
    return GenerationChunk(
        text="".join(parts),
        token_ids=tuple(tokens),
        drafted=drafted,
        accepted=accepted,
        adapter_version=last.adapter_version,
        vocabulary_epoch=last.vocabulary_epoch,
        finish_reason=finish_reason,
        logprobs=tuple(_logprob(score, texts) for score in scores),
        cycles=cycles,
        covered=tuple(covered),
    )


def _push(tokens: Sequence[int], text: TextStream, parts: list[str]) -> int:
    """Adds the text of a cycle's tokens; returns how many count: those behind a stop string do not."""
    for used, token in enumerate(tokens, 1):
        parts.append(text.push((token,)).text)
        if text.stopped:
            return used
    return len(tokens)


def _logprob(score: TokenScore, texts: TokenTexts) -> TokenLogprob:
    top = tuple((texts.of(token), logprob) for token, logprob in score.alternatives)
    return TokenLogprob(texts.of(score.token), score.logprob, top)
