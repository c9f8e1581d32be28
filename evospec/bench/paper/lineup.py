"""Who takes part: the arms of the paper bench and what they stand for."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from evospec.bench.arms import TRANSFORMERS
from evospec.bench.paper.settings import ALIGNED, LORA, ONLINE, PaperSettings
from evospec.bench.results import FULL, PLAIN

NANOSPEC, EVOSPEC = "nanospec", "evospec"
PEERS = (TRANSFORMERS, f"{TRANSFORMERS}:static", f"{TRANSFORMERS}:prompt-lookup")


@dataclass(frozen=True, slots=True)
class Lineup:
    """Names of arms.

    Attributes:
        statics: FR-Spec with each size, the first being what ratios are to.
        vocabtrim: its list is the first static one's: both rank by text of the target. So it also shows
            how far two equal arms of a run differ.
        learned: names of adapters that there are.
    """

    statics: tuple[str, ...]
    vocabtrim: str
    learned: tuple[str, ...]

    @classmethod
    def of(cls, settings: PaperSettings, learned: tuple[str, ...]) -> Lineup:
        statics = tuple(f"fr-spec:{rows}" for rows in settings.statics)
        return cls(statics, f"vocabtrim:{settings.statics[0]}", learned)

    @property
    def reference(self) -> str:
        return self.statics[0]

    @property
    def both(self) -> str:
        """EvoSpec as a whole; without an adapter, its vocabulary alone."""
        return self._with(EVOSPEC, ALIGNED) or EVOSPEC

    @property
    def headline(self) -> tuple[str, ...]:
        """All arms of our engine."""
        adapted = (
            *(self._with(policy, ALIGNED) for policy in (FULL, self.reference, EVOSPEC)),
            self._with(EVOSPEC, LORA),
            self._with(FULL, ONLINE),
        )
        fixed = (FULL, *self.statics, self.vocabtrim, NANOSPEC, EVOSPEC)
        return (*fixed, *(arm for arm in adapted if arm is not None))

    @property
    def contest(self) -> tuple[str, ...]:
        """The arms that are compared under other conditions: batches, sampling, streams."""
        return tuple(dict.fromkeys((FULL, self.reference, NANOSPEC, EVOSPEC, self.both)))

    def titles(self, arms: Iterable[str] = ()) -> dict[str, str]:
        """What arms are called in tables.

        Args:
            arms: those whose drafting is named, as `evospec@tree`, among others.
        """
        named = {
            PLAIN: "plain decoding",
            FULL: "EAGLE-3, full vocabulary",
            **{arm: f"FR-Spec, {_thousands(arm)}" for arm in self.statics},
            self.vocabtrim: f"VocabTrim, {_thousands(self.vocabtrim)}",
            NANOSPEC: "NanoSpec",
            EVOSPEC: "EvoSpec, vocabulary only",
            f"{FULL}+{ALIGNED}": "EvoSpec, alignment only",
            f"{self.reference}+{ALIGNED}": f"alignment over FR-Spec, {_thousands(self.reference)}",
            f"{EVOSPEC}+{LORA}": "EvoSpec with one LoRA for all traffic",
            f"{FULL}+{ONLINE}": "full-parameter online, full vocabulary",
        }
        named[f"{EVOSPEC}+{ALIGNED}"] = "EvoSpec"
        pairs = [(arm, arm.partition("@")) for arm in arms if "@" in arm]
        drafted = {arm: f"{named[policy]}, {way}" for arm, (policy, _, way) in pairs if policy in named}
        return named | drafted

    def _with(self, policy: str, adapter: str) -> str | None:
        return f"{policy}+{adapter}" if adapter in self.learned else None


def _thousands(arm: str) -> str:
    rows = int(arm.rpartition(":")[2])
    return f"{rows // 1024}k rows" if rows >= 1024 and rows % 1024 == 0 else f"{rows} rows"
