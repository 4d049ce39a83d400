"""`PrefixTree`: what earlier texts left in the cache, found by their tokens. Integers only.

Every node is a block of PAGE_SIZE tokens behind those of its parent, with a page per page group. In a model with
fixed-size states a text can be continued only from a node with a *checkpoint*, the slot that holds the state behind its
last token. A text that ends inside a block leaves a *tail*: a node of fewer tokens, without children, whose page is
copied by who goes on from it.

A text belongs to a space; texts of different spaces share nothing. A node on which a sequence stands is locked:
neither it nor what leads to it goes, and its checkpoint stays. The tree owns its checkpoints; of pages it says that it
keeps them (`BlockPool.keep`). What goes first is said by an eviction policy (`victims.py`).

Sources: the tree over blocks, arXiv 2312.07104 (SGLang); checkpoints where a text branched and where it ended, arXiv
2411.19379 (Marconi), there with states at multiples of a chunk; tails are ours.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from stretto.cache.blocks import BlockPool, SlotPool
from stretto.core.pages import PAGE_SIZE, PageGroup


@dataclass(slots=True, eq=False)
class Node:
    """start, end: positions of its tokens. mark: a hash of all tokens up to its end. pages: per group, 0 = not there.
    slot: its checkpoint, 0 = none. locks: sequences that stand on it. used: when it was last used, in requests since
    the start."""

    parent: "Node | None"
    tokens: tuple[int, ...]
    end: int
    pages: list[int]
    mark: int = 0
    slot: int = 0
    locks: int = 0
    used: int = 0
    children: dict[tuple[int, ...], "Node"] = field(default_factory=dict)
    tails: dict[tuple[int, ...], "Node"] = field(default_factory=dict)

    @property
    def start(self) -> int:
        return self.end - len(self.tokens)

    @property
    def is_tail(self) -> bool:
        return 0 < len(self.tokens) < PAGE_SIZE

    @property
    def num_children(self) -> int:
        return len(self.children) + len(self.tails)

    @property
    def has_state(self) -> bool:
        return self.slot != 0

    @property
    def path(self) -> "list[Node]":
        """The nodes from the first block to this one."""
        found = list(self.ancestors)
        return found[::-1]

    @property
    def ancestors(self) -> "Iterator[Node]":
        """This node and those that lead to it, without the root."""
        node = self
        while node.parent is not None:
            yield node
            node = node.parent


@dataclass(frozen=True, slots=True)
class Match:
    """node: where a text can go on; its `end` is how many tokens need not be computed. reach: of how many tokens there
    are pages, from which it cannot."""

    node: Node
    reach: int


class PrefixTree:
    """groups, blocks: page groups and their pools; slots: those of states, None where layers have none. step: texts
    are continued at multiples of so many tokens only, but for tails."""

    def __init__(
        self, groups: Sequence[PageGroup], blocks: Sequence[BlockPool], slots: SlotPool | None, step: int = PAGE_SIZE
    ) -> None:
        assert step % PAGE_SIZE == 0
        self.groups, self.blocks, self.slots, self.step = tuple(groups), tuple(blocks), slots, step
        self.now = 0
        self.leaves: dict[Node, None] = {}
        """Nodes that nothing continues."""
        self.stateful: dict[Node, None] = {}
        """Nodes with a checkpoint."""
        self._roots: dict[str, Node] = {}
        self._spaces: dict[Node, str] = {}

    def root(self, space: str) -> Node:
        """Where the texts of a space begin. It is there as long as it is locked or continued."""
        if space not in self._roots:
            root = self._roots[space] = Node(None, (), 0, [])
            self._spaces[root] = space
        return self._roots[space]

    def match(self, tokens: Sequence[int], space: str) -> Match:
        """Where `tokens` can go on; at least the last one stays to be computed. O(len(tokens))."""
        node = best = self.root(space)
        last, walk = len(tokens) - 1, _Walk(self.groups, needs_state=self.slots is not None)
        while True:
            if node.tails:
                best = max((best, *walk.tails(node, tokens, last)), key=lambda one: one.end)
            block = tuple(tokens[node.end : node.end + PAGE_SIZE]) if node.end + PAGE_SIZE <= last else ()
            child = node.children.get(block)
            if child is None:
                break
            node = child
            walk.follow(node)
            if node.end % self.step == 0 and walk.can_go_on(node):
                best = node
        for used in best.ancestors:
            used.used = self.now
        return Match(best, node.end)

    def extend(self, node: Node, tokens: Sequence[int], end: int, pages_of: Callable[[int], Sequence[int]]) -> Node:
        """The node `end` tokens deep along `tokens`, from `node` on; blocks that are missing are added.

        pages_of: by number of a block, a page per group, 0 = none.
        """
        while node.end < end:
            block = tuple(tokens[node.end : node.end + PAGE_SIZE])
            pages, child = pages_of(node.end // PAGE_SIZE), node.children.get(block)
            if child is None:
                mark = hash((node.mark, block))  # of integers: the same in every process
                child = Node(node, block, node.end + PAGE_SIZE, [0] * len(self.groups), mark, used=self.now)
                node.children[block] = child
                self._grown(node, child)
            self._fill(child, pages)
            node = child
        return node

    def add_tail(self, node: Node, tokens: Sequence[int], pages: Sequence[int], slot: int) -> Node | None:
        """A text ends here, less than a block behind `node`. slot: its checkpoint, 0 if layers have none. None if
        there was one: the slot remains the caller's."""
        assert 0 < len(tokens) < PAGE_SIZE and bool(slot) == (self.slots is not None)
        block = tuple(tokens)
        if (there := node.tails.get(block)) is not None:
            there.used = self.now
            return None
        tail = Node(node, block, node.end + len(block), [0] * len(self.groups), slot=slot, used=self.now)
        node.tails[block] = tail
        self._grown(node, tail)
        self._fill(tail, pages)
        if slot:
            self.stateful[tail] = None
        return tail

    def set_slot(self, node: Node, slot: int) -> None:
        """Give a checkpoint to a node that has none."""
        assert not node.slot and slot
        node.slot, node.used = slot, self.now
        self.stateful[node] = None

    def drop_slot(self, node: Node) -> None:
        """Free the checkpoint of a node; a tail goes with it."""
        assert self.slots is not None and node.slot and not node.locks
        if node.is_tail:
            self.remove(node)
            return
        self.slots.release(node.slot)
        node.slot = 0
        del self.stateful[node]

    def remove(self, node: Node) -> None:
        """Free a node that nothing continues and nobody stands on."""
        parent = node.parent
        assert parent is not None and not node.num_children and not node.locks
        del self.leaves[node]
        del (parent.tails if node.is_tail else parent.children)[node.tokens]
        for pool, page in zip(self.blocks, node.pages, strict=True):
            if page:
                pool.forget(page)
        if node.slot:
            assert self.slots is not None
            self.slots.release(node.slot)
            del self.stateful[node]
        if not parent.num_children:
            if parent.parent is not None:
                self.leaves[parent] = None
            self._prune(parent)

    def lock(self, node: Node) -> None:
        """A sequence stands here."""
        node.locks += 1

    def unlock(self, node: Node) -> None:
        """A sequence stands here no longer."""
        assert node.locks > 0
        node.locks -= 1
        self._prune(node)

    @property
    def roots(self) -> list[Node]:
        """Where the texts of every space begin."""
        return list(self._roots.values())

    @property
    def nodes(self) -> Iterator[Node]:
        """All of them, roots aside."""
        left = self.roots
        while left:
            node = left.pop()
            below = [*node.children.values(), *node.tails.values()]
            yield from below
            left += below

    def _fill(self, node: Node, pages: Sequence[int]) -> None:
        """What the caller has of a block and the tree has not."""
        for group, page in enumerate(pages):
            if page and not node.pages[group]:
                node.pages[group] = page
                self.blocks[group].keep(page)

    def _grown(self, parent: Node, child: Node) -> None:
        self.leaves.pop(parent, None)
        self.leaves[child] = None

    def _prune(self, root: Node) -> None:
        """A root that is neither locked nor continued goes."""
        if root.parent is None and not root.locks and not root.num_children:
            del self._roots[self._spaces.pop(root)]


class _Walk:
    """A text that is followed through the tree, and where it could go on. needs_state: only from checkpoints."""

    def __init__(self, groups: Sequence[PageGroup], *, needs_state: bool) -> None:
        self._groups, self._needs_state = groups, needs_state
        self._gaps = [-1] * len(groups)  # per group the last block without a page

    def follow(self, node: Node) -> None:
        """The text goes on over this block."""
        for group, page in enumerate(node.pages):
            if not page:
                self._gaps[group] = node.start // PAGE_SIZE

    def can_go_on(self, node: Node) -> bool:
        """Whether behind `node`, to which the text was followed, all is there that later tokens see."""
        if self._needs_state and not node.slot:
            return False
        return all(gap < group.first_page(node.end) for group, gap in zip(self._groups, self._gaps, strict=True))

    def tails(self, node: Node, tokens: Sequence[int], last: int) -> Iterator[Node]:
        """Tails of `node` from which the text can go on, with at least one token left."""
        for block, tail in node.tails.items():
            fits = tail.end <= last and tuple(tokens[node.end : tail.end]) == block
            if fits and all(tail.pages) and self.can_go_on(tail):
                yield tail


def check(tree: PrefixTree) -> None:
    """Assert that lists and nodes agree (pages and slots are checked by `Ledger.check`)."""
    nodes = list(tree.nodes)
    assert set(tree.leaves) == {node for node in nodes if not node.num_children}
    assert set(tree.stateful) == {node for node in nodes if node.slot}
    for node in nodes:
        assert node.parent is not None and node.start == node.parent.end
        assert len(node.tokens) == PAGE_SIZE or not node.num_children, "a tail goes on"
        assert len(node.tokens) == PAGE_SIZE or bool(node.slot) == (tree.slots is not None), "a tail without a state"
        windows = zip(tree.groups, node.pages, strict=True)
        assert all(page for group, page in windows if group.window is None), "a block without its page"
    assert all(root.locks or root.num_children for root in tree.roots), "an empty space"
