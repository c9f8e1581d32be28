"""Arms as they are written on the command line: what is compared in one run."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Literal

from pydantic import ValidationError

from evospec.bench.results import PLAIN
from evospec.config import EngineConfig
from evospec.errors import EvoSpecError
from evospec.vocab.policy_name import PolicyName

TRANSFORMERS = "transformers"
PeerKind = Literal["dynamic", "static", "prompt-lookup", "assisted"]
# What follows `transformers` in an arm's name.
_PEERS: dict[str, PeerKind] = {
    "": "dynamic",
    ":static": "static",
    ":prompt-lookup": "prompt-lookup",
    ":assisted": "assisted",
}
_DRAFTINGS = "`auto`, `chain`, `tree`, `chain:N`, or `tree:DxBxN` (depth, beam, nodes)"


class ArmError(EvoSpecError):
    """An arm that does not exist, or that can't run with these settings."""


@dataclass(frozen=True, slots=True)
class Drafting:
    """How an arm drafts; sizes that are not written are the settings'.

    Attributes:
        sizes: fields of `EngineConfig`.
    """

    text: str
    mode: Literal["auto", "chain", "tree"]
    sizes: tuple[tuple[str, int], ...] = ()

    @classmethod
    def parse(cls, text: str) -> Drafting:
        """Raises ArmError naming what can be written."""
        mode, colon, sizes = text.partition(":")
        if text == "auto":
            return cls(text, "auto")
        if mode == "chain" and (not colon or _is_count(sizes)):
            return cls(text, "chain", (("draft_length", int(sizes)),) if colon else ())
        if mode == "tree" and not colon:
            return cls(text, "tree")
        numbers = sizes.split("x")
        if mode == "tree" and len(numbers) == 3 and all(_is_count(number) for number in numbers):
            names = ("tree_depth", "tree_beam", "tree_nodes")
            return cls(text, "tree", tuple(zip(names, map(int, numbers), strict=True)))
        raise ArmError(f"unknown drafting {text!r}: write {_DRAFTINGS}")

    def apply(self, config: EngineConfig) -> EngineConfig:
        """Raises ArmError when a size is out of bounds."""
        changes = {"drafting": self.mode, **dict(self.sizes)}
        try:
            return EngineConfig.model_validate(config.model_dump() | changes)
        except ValidationError as error:
            first = error.errors()[0]
            field = "".join(f"{part}: " for part in first["loc"])
            raise ArmError(f"drafting {self.text!r}: {field}{_reason(first['msg'])}") from None


@dataclass(frozen=True, slots=True)
class ArmName:
    """One arm.

    Attributes:
        text: as it was written, without a drafting that is the default.
        policy: `plain`, a vocabulary policy, or `transformers` and its variants; `text` names files
            without their folders.
        drafting: None where the engine drafts nothing, or is not ours.
        peer: how transformers generates; None for our own engine.
        adapter: of `DecodeSettings.adapters`, that the drafter has; None: it is the base.
    """

    text: str
    policy: str
    drafting: Drafting | None = None
    peer: PeerKind | None = None
    adapter: str | None = None


def parse_arms(texts: Sequence[str], default: str, adapters: Collection[str] = ()) -> list[ArmName]:
    """The arms, each once, plain decoding first: the others are compared with it.

    Args:
        default: drafting of arms that name none.
        adapters: names that may follow a policy, as in `evospec+NAME`.

    Raises:
        ArmError, EvoSpecError: an unknown policy or drafting.
    """
    usual = Drafting.parse(default)
    arms = [ArmName(PLAIN, PLAIN), *(_parse(text, usual, adapters) for text in texts)]
    return list(dict.fromkeys(arms))


def check_peers(arms: Sequence[ArmName], *, batch: int, temperature: float, assistant: str | None) -> None:
    """Raises ArmError for a peer that can't do what is asked."""
    for arm in arms:
        if arm.peer is None:
            continue
        if temperature > 0:
            raise ArmError(f"{arm.text} decodes greedily here: leave it out, or set the temperature to 0")
        if arm.peer in ("prompt-lookup", "assisted") and batch > 1:
            raise ArmError(
                f"{arm.text} decodes one request at a time in transformers: leave it out, "
                "or set the batch to 1"
            )
        if arm.peer == "assisted" and assistant is None:
            raise ArmError(
                f"{arm.text} needs a smaller model with the target's tokenizer: name one with --assistant, "
                "or leave the arm out"
            )


def _parse(text: str, usual: Drafting, adapters: Collection[str]) -> ArmName:
    written, at, drafting = text.partition("@")
    base, plus, ending = written.rpartition("+")
    adapter = ending if plus and ending in adapters else None
    policy = written if adapter is None else base
    kind = policy.removeprefix(TRANSFORMERS)
    is_peer = kind != policy
    if policy == PLAIN or is_peer:
        if at:
            raise ArmError(f"arm {text!r}: {policy} takes no drafting; write {policy!r}")
        return ArmName(policy, policy, peer=_peer(policy, kind) if is_peer else None)
    corpus = PolicyName.parse(policy).corpus
    shown = policy if corpus is None else f"{policy.removesuffix(str(corpus))}{corpus.name}"
    chosen = Drafting.parse(drafting) if at else usual
    chosen.apply(EngineConfig())
    if adapter is not None:
        shown = f"{shown}+{adapter}"
    label = shown if chosen == usual else f"{shown}@{chosen.text}"
    return ArmName(label, policy, chosen, adapter=adapter)


def _peer(policy: str, kind: str) -> PeerKind:
    if kind not in _PEERS:
        choices = ", ".join(f"`{TRANSFORMERS}{known}`" for known in _PEERS)
        raise ArmError(f"unknown arm {policy!r}: choose one of {choices}")
    return _PEERS[kind]


def _is_count(text: str) -> bool:
    return text.isascii() and text.isdigit() and int(text) > 0


def _reason(message: str) -> str:
    return message.removeprefix("Value error, ")
