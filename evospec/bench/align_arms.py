"""Arms of `bench stream --arms` and `bench memory`: ways to adapt a drafter to its traffic."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from pydantic import JsonValue, TypeAdapter, ValidationError

from evospec.bench.arms import ArmError
from evospec.config import AlignmentConfig

NONE: Final = "none"
DEFAULT_ARMS = "none,lora,full-parameter,full-parameter+full-loss"
# Streams stand for much longer ones: nothing of them is left out.
_UNBOUNDED: dict[str, JsonValue] = {"trace_buffer_mb": 1024.0, "trace_mb_per_s": 1e6}
_UPDATE_EVERY: TypeAdapter[int] = TypeAdapter(int)
_GATED: TypeAdapter[bool] = TypeAdapter(bool)

# Online speculative decoding (Liu et al., 2310.07177): all parameters, on what was drafted wrongly, every
# eight requests, and no gate.
_FULL: Mapping[str, JsonValue] = {
    "method": "full-parameter",
    "weight_decay": 0.0,
    "blend": 1.0,
    "learning_rate": 2e-5,
    "replay_clusters": 1,
    "position_weights": "decay",
    "curriculum": "uniform",
    "cadence": "steady",
}
_KINDS: Mapping[str, Mapping[str, JsonValue]] = {
    NONE: {"enabled": False},
    "lora": {},
    "full-parameter": {**_FULL, "positions": "wrong"},
    "full-parameter+full-loss": {**_FULL, "positions": "all", "loss_rows": "vocabulary"},
}


@dataclass(frozen=True, slots=True)
class AlignArm:
    """One arm.

    Attributes:
        text: as it was written.
        policy: vocabulary policy that its engine drafts with.
        update_every: requests between two updates.
        gated: whether only candidates that are better on held-out traces are used.
    """

    text: str
    policy: str
    config: AlignmentConfig
    update_every: int = 1
    gated: bool = True

    @property
    def adapts(self) -> bool:
        return self.config.enabled


def parse_align_arms(texts: Sequence[str], policy: str) -> list[AlignArm]:
    """The arms, each once; `none` with the same policy comes first, for the others to be compared with.

    Args:
        texts: `KIND[:option=value]...[@policy]`; options are those of `alignment`, and `update_every`
            and `gated`.
        policy: of arms that name none.

    Raises:
        ArmError: an unknown kind or option, or a value out of bounds.
    """
    arms = [_parse(text, policy) for text in dict.fromkeys(texts)]
    if not arms:
        raise ArmError(f"no arm to run: write some of {', '.join(_KINDS)}")
    bases = {
        arm.policy: _parse(NONE if arm.policy == policy else f"{NONE}@{arm.policy}", policy) for arm in arms
    }
    return [*bases.values(), *(arm for arm in arms if arm.adapts)]


def _parse(text: str, usual: str) -> AlignArm:
    written, at, policy = text.partition("@")
    kind, *options = written.split(":")
    if kind not in _KINDS:
        raise ArmError(f"unknown arm {text!r}: choose one of {', '.join(_KINDS)}")
    values: dict[str, JsonValue] = dict(_KINDS[kind])
    for option in options:
        name, equals, value = option.partition("=")
        if not equals or kind == NONE:
            raise ArmError(f"arm {text!r}: write options as name=value, after a kind that adapts")
        values[name] = value
    full = kind.startswith("full-parameter")
    try:
        every = _UPDATE_EVERY.validate_python(values.pop("update_every", 8 if full else 1))
        gated = _GATED.validate_python(values.pop("gated", not full))
        config = AlignmentConfig.model_validate({**_UNBOUNDED, **values})
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "option"
        raise ArmError(f"arm {text!r}: {where}: {first['msg'].removeprefix('Value error, ')}") from None
    if every < 1:
        raise ArmError(f"arm {text!r}: update_every is {every}, 1 or more requests lie between updates")
    return AlignArm(text, policy if at else usual, config, every, gated)
