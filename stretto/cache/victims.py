"""`Victims`: makes room in the prefix tree, in the order of an eviction policy. Integers only.

A policy puts everything that may go into an order, which is followed until it is used up; what has been used, locked or
continued since is passed over. So a policy is asked once per many evictions.
"""

from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from stretto.cache.prefix import Node, PrefixTree
from stretto.core.policy import EvictPolicy


@dataclass(frozen=True, slots=True)
class _Stretch:
    """What goes when a node is evicted, or its checkpoint is. start: where the tokens begin that it saves."""

    node: Node
    start: int
    used: int
    has_state: bool

    @property
    def end(self) -> int:
        return self.node.end

    @property
    def num_children(self) -> int:
        return self.node.num_children


class Victims:
    """Evicts from `tree` by `policy`."""

    def __init__(self, tree: PrefixTree, policy: EvictPolicy) -> None:
        self._tree, self._policy = tree, policy
        self._leaves: deque[_Stretch] = deque()
        self._states: deque[_Stretch] = deque()
        self._pages: list[deque[_Stretch]] = [deque() for _ in tree.groups]

    def free_pages(self, group: int, num_pages: int) -> None:
        """Until so many pages of a group are free, if that can be."""
        tree, pool = self._tree, self._tree.blocks[group]
        is_window = tree.groups[group].window is not None
        while pool.num_free < num_pages and pool.num_idle:
            if is_window:  # a page that later texts may not need; what is before and behind it stays
                queue, found = self._pages[group], (node for node in tree.nodes if self._is_idle(node, group))
                one = self._next(queue, found, lambda node: self._is_idle(node, group))
                if one is None:
                    return
                page, one.pages[group] = one.pages[group], 0
                pool.forget(page)
            elif not self.drop_leaf():
                return

    def free_slot(self) -> bool:
        """Whether a slot is free, once a checkpoint has gone if none was."""
        slots = self._tree.slots
        assert slots is not None
        return slots.num_free > 0 or self.drop_state()

    def drop_leaf(self) -> bool:
        """Whether there was a node that could go, with its pages and its checkpoint."""
        one = self._next(self._leaves, self._tree.leaves, lambda node: not (node.locks or node.num_children))
        if one is not None:
            self._tree.remove(one)
        return one is not None

    def drop_state(self) -> bool:
        """Whether there was a checkpoint that could go. Those where texts branched go last."""
        found = [node for node in self._tree.stateful if not node.locks]
        found = [node for node in found if node.num_children <= 1] or found
        one = self._next(self._states, found, lambda node: node.slot != 0 and not node.locks)
        if one is not None:
            self._tree.drop_slot(one)
        return one is not None

    def _is_idle(self, node: Node, group: int) -> bool:
        page = node.pages[group]
        return page != 0 and not self._tree.blocks[group].ref(page)

    def _next(self, queue: "deque[_Stretch]", found: Iterable[Node], may_go: Callable[[Node], bool]) -> Node | None:
        """The next of an order that may still go; a new order is made when the old one is used up."""
        for is_new in (False, True):
            if is_new:
                stretches = [self._stretch(node) for node in found if may_go(node)]
                queue.extend(self._policy.order(stretches, self._tree.now))
            while queue:
                one = queue.popleft()
                if one.node.used == one.used and self._is_there(one.node) and may_go(one.node):
                    return one.node
        return None

    def _is_there(self, node: Node) -> bool:
        """Whether a node was not evicted meanwhile."""
        parent = node.parent
        if parent is None:
            return False
        return (parent.tails if node.is_tail else parent.children).get(node.tokens) is node

    def _stretch(self, node: Node) -> _Stretch:
        """A checkpoint saves all tokens since the one before it, pages their own."""
        start = node.start
        if node.slot:
            assert node.parent is not None
            before = (one.end for one in node.parent.ancestors if one.slot)
            start = next(before, 0)
        return _Stretch(node, start, node.used, node.has_state)
