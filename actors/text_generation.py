"""One request on a replica: the engine's tokens turned into text chunks, stop strings honoured."""

from __future__ import annotations

from collections.abc import AsyncGenerator

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
    """Yields one chunk per cycle, the last one with a finish reason, or ends in one failure.

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
    try:
        while not (engine_done or text.stopped):
            emission = await outputs.next()
            engine_done = emission.output.finish_reason is not None
            yield _chunk(emission, text, texts)
    except InvalidRequestError as error:
        engine_done = True
        yield GenerationFailure("invalid", str(error), error.param)
    except EvoSpecError as error:
        engine_done = True
        yield GenerationFailure("failed", str(error))
    finally:
        if not engine_done:
            loop.cancel(request.id)


def _chunk(emission: Emission, text: TextStream, texts: TokenTexts) -> GenerationChunk:
    output = emission.output
    parts: list[str] = []
    used = 0
    # One by one, so that tokens behind a stop string in the same cycle are not counted.
    for token in output.tokens:
        parts.append(text.push((token,)).text)
        used += 1
        if text.stopped:
            break
    if output.finish_reason is not None:
        parts.append(text.finish().text)
    finish_reason: FinishReason | None = "stop" if text.stopped else output.finish_reason
    return GenerationChunk(
        text="".join(parts),
        token_ids=output.tokens[:used],
        drafted=output.drafted,
        accepted=output.accepted,
        adapter_version=emission.adapter_version,
        vocabulary_epoch=emission.vocabulary_epoch,
        finish_reason=finish_reason,
        logprobs=tuple(_logprob(score, texts) for score in output.scores[:used]),
    )


def _logprob(score: TokenScore, texts: TokenTexts) -> TokenLogprob:
    top = tuple((texts.of(token), logprob) for token, logprob in score.alternatives)
    return TokenLogprob(texts.of(score.token), score.logprob, top)
