"""How a cycle drafts."""

from __future__ import annotations

from dataclasses import dataclass, field

from evospec.config import EngineConfig
from evospec.decoding.tree import TreeShape


@dataclass(frozen=True, slots=True)
class DraftPlan:
    """A chain of `depth` tokens, or a tree; depth 0 is plain decoding.

    Attributes:
        name: as in statistics.
    """

    depth: int
    tree: TreeShape | None = None
    name: str = field(init=False, compare=False)

    def __post_init__(self) -> None:
        if self.depth == 0:
            name = "plain"
        elif self.tree is None:
            name = f"chain-{self.depth}"
        else:
            name = f"tree-{self.tree.depth}x{self.tree.beam}-{self.tree.nodes}"
        object.__setattr__(self, "name", name)

    @classmethod
    def chain(cls, length: int) -> DraftPlan:
        return cls(length)

    @classmethod
    def of_tree(cls, shape: TreeShape) -> DraftPlan:
        return cls(shape.depth, shape)

    @property
    def nodes(self) -> int:
        """Tokens that are verified."""
        return self.depth if self.tree is None else self.tree.nodes

    @property
    def scratch(self) -> int:
        """Positions that drafting writes past a row's last pair."""
        return self.depth if self.tree is None else self.tree.depth * self.tree.beam

    def __str__(self) -> str:
        return self.name


PLAIN = DraftPlan(0)


def plans_of(config: EngineConfig, *, drafts: bool) -> list[DraftPlan]:
    """What cycles may do, the configured chain first.

    Args:
        drafts: whether there is a drafter.
    """
    if not drafts or config.draft_length == 0:
        return [PLAIN]
    chain = DraftPlan.chain(config.draft_length)
    tree = DraftPlan.of_tree(TreeShape(config.tree_depth, config.tree_beam, config.tree_nodes))
    if config.drafting == "chain":
        return [chain]
    if config.drafting == "tree":
        return [tree]
    shorter = [DraftPlan.chain(length) for length in (1, 2, 3) if length < config.draft_length]
    bushes = []
    if config.tree_depth > 2:
        nodes = min(config.tree_nodes // 2 + 1, config.tree_beam + config.tree_beam**2)
        bushes.append(DraftPlan.of_tree(TreeShape(2, config.tree_beam, nodes)))
    return [chain, tree, PLAIN, *shorter, *bushes]
