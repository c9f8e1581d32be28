"""How a cycle drafts."""

from __future__ import annotations

from dataclasses import dataclass, field

from evospec.config import EngineConfig
from evospec.decoding.tree import TreeShape

# Requests from which on the whole head is worth a look: scoring it takes hardly longer for many than for one,
# while what the active rows need to know is learned for each of them, by the host. Each plan has graphs.
FULL_HEAD_ROWS = 8


@dataclass(frozen=True, slots=True)
class DraftPlan:
    """A chain of `depth` tokens, or a tree; depth 0 is plain decoding.

    Attributes:
        full_head: whether drafts score every row of the head, whatever the vocabulary.
        name: as in statistics.
    """

    depth: int
    tree: TreeShape | None = None
    full_head: bool = False
    name: str = field(init=False, compare=False)

    def __post_init__(self) -> None:
        if self.depth == 0:
            name = "plain"
        elif self.tree is None:
            name = f"chain-{self.depth}" + ("-full" if self.full_head else "")
        else:
            name = f"tree-{self.tree.depth}x{self.tree.beam}-{self.tree.nodes}"
        object.__setattr__(self, "name", name)

    @classmethod
    def chain(cls, length: int, *, full_head: bool = False) -> DraftPlan:
        return cls(length, full_head=full_head)

    @classmethod
    def of_tree(cls, shape: TreeShape) -> DraftPlan:
        return cls(shape.depth, shape)

    @property
    def reads_vocabulary(self) -> bool:
        """Whether it matters which rows are active."""
        return self.depth > 0 and not self.full_head

    @property
    def least_rows(self) -> int:
        """Requests from which on it is worth a look."""
        return FULL_HEAD_ROWS if self.full_head else 1

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


def plans_of(config: EngineConfig, *, drafts: bool, prunes: bool = False) -> list[DraftPlan]:
    """What cycles may do, the configured chain first.

    Args:
        drafts: whether there is a drafter.
        prunes: whether a vocabulary decides which rows of the head are scored.
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
    whole = []
    if prunes and config.max_batch >= FULL_HEAD_ROWS:
        whole.append(DraftPlan.chain(config.draft_length, full_head=True))
    return [chain, tree, PLAIN, *shorter, *bushes, *whole]
