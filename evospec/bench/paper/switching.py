"""The part whose topic switches."""

from __future__ import annotations

from evospec.bench.paper.decoding import settings_with, speeds, timed
from evospec.bench.paper.work import Work
from evospec.bench.results import Results
from evospec.bench.stream import StreamBench, StreamSettings


def switching(work: Work) -> Results:
    """Raises OutOfTimeError, and EvoSpecError: a topic has too few prompts."""
    settings = work.settings
    decode = settings_with(work, settings.decode(work.lineup.contest, limit=None))
    stream = StreamBench.of(StreamSettings(decode, settings.every, settings.rounds), work.models)
    turns = timed(work, stream.bench, may_shorten=False)
    results, _ = stream.results(turns)
    return results.model_copy(update={"turns": speeds(turns, decode.batch)})
