"""`PrefixCache`: what sequences take from the prefix tree and leave in it. Integers only.

A sequence that is admitted takes the pages of the longest known prefix of its tokens, and starts from the checkpoint
behind it, which it reads and never writes. While its prompt is read, blocks that are full go into the tree, where other
sequences find them at once. In a model with states the prompt is read in pieces that end at *cuts*, where the state
stays as a checkpoint: where its text parts from a known one (so the third text with a beginning finds it, whatever
follows), and near the end of a long prompt (so the same prompt finds it). A sequence that is released leaves all it
has, its state as a checkpoint behind its last token, which nobody copies.

Where decoding gives other bits than reading a prompt (`Reuse.is_exact` is False: torch, prompts in 8 bits), only what
was read as a prompt is left, and texts go on at multiples of `ALIGN` tokens, where pieces of prompts begin: what is
reused then has the bits that computing it again would have.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from stretto.cache.blocks import BlockPool, SlotPool
from stretto.cache.prefix import Node, PrefixTree
from stretto.cache.tables import Table
from stretto.cache.victims import Victims
from stretto.core.pages import PAGE_SIZE, PageGroup
from stretto.core.policy import EvictPolicy

ALIGN = 64  # tokens: where kernels that read prompts in chunks begin one
STRETCH = 256  # tokens: sequences that share less are not computed together
WORTH = 64  # tokens: who need not compute so many may wait for it, and a checkpoint that saves so many is worth a step


@dataclass(frozen=True, slots=True, kw_only=True)
class Reuse:
    """How texts are reused. policy: what is evicted first. is_exact: reading and decoding give the same bits. max_idle:
    pages per group that prefixes may hold while nobody uses them; None = all there are."""

    policy: EvictPolicy
    is_exact: bool = True
    max_idle: tuple[int, ...] | None = None

    def most_idle(self, group: int, pool: BlockPool) -> int:
        """Pages of a group that prefixes may hold while nobody uses them. pool: that of the group."""
        return pool.num_blocks if self.max_idle is None else self.max_idle[group]


@dataclass(slots=True, eq=False)
class Standing:
    """Where a sequence stands in the tree. tokens: its text, a list that grows. read: tokens that are read as a prompt.
    node: the deepest node of its text, locked. source: the checkpoint that its next step starts from, of a locked node.
    tail: a page of this node is to be copied into the first page of its own. cuts: positions, in order. start: tokens
    that it found. marks: of every `STRETCH` tokens of its text: those that begin alike have the same first ones."""

    tokens: Sequence[int]
    space: str
    read: int
    node: Node
    start: int
    source: int = 0
    tail: Node | None = None
    cuts: list[int] = field(default_factory=list)
    marks: list[int] = field(default_factory=list)

    def stand(self, node: Node) -> None:
        """Its text is known up to there."""
        if node.end // STRETCH > self.node.end // STRETCH or not self.marks:
            self.marks = [one.mark for one in node.path if one.end % STRETCH == 0]
        self.node = node


class PrefixCache:
    """Over the pools of a ledger."""

    def __init__(
        self, reuse: Reuse, groups: Sequence[PageGroup], blocks: Sequence[BlockPool], slots: SlotPool | None
    ) -> None:
        self.reuse, self._blocks, self._slots = reuse, blocks, slots
        self._step = PAGE_SIZE if reuse.is_exact else ALIGN
        self.tree = PrefixTree(groups, blocks, slots, self._step)
        self._victims = Victims(self.tree, reuse.policy)

    def admit(self, tables: Sequence[Table], tokens: Sequence[int], space: str, *, fresh: bool) -> Standing:
        """A sequence of these tokens; its tables get the pages of what is known. fresh: as if nothing were."""
        self.tree.now += 1
        match = self.tree.match([] if fresh else tokens, space)
        node = match.node
        standing = Standing(tokens, space, len(tokens), node, node.end)
        standing.stand(node)
        self.tree.lock(node)
        if self._slots is not None:
            standing.source = node.slot
            standing.cuts = self._cuts(node.end, match.reach, len(tokens))
        if node.is_tail:
            assert node.parent is not None
            standing.tail = node
            for pool, page in zip(self._blocks, node.pages, strict=True):
                pool.incref([page])  # until it is copied
            node = node.parent
        path = node.path
        for group, (table, pool) in enumerate(zip(tables, self._blocks, strict=True)):
            first = min(table.group.first_page(standing.start), len(path))
            pages = [one.pages[group] for one in path[first:]]
            pool.incref(pages)
            table.blocks, table.num_freed = [0] * first + pages, first
        return standing

    def take_tail(self, standing: Standing, tables: Sequence[Table]) -> list[tuple[int, list[int], list[int]]]:
        """Rows to be copied into the sequence's own page, once: per page group, where from and where to."""
        tail, standing.tail = standing.tail, None
        if tail is None:
            return []
        copies = []
        for group, (table, page) in enumerate(zip(tables, tail.pages, strict=True)):
            rows, own = range(len(tail.tokens)), table.blocks[tail.start // PAGE_SIZE]
            copies.append((group, [page * PAGE_SIZE + i for i in rows], [own * PAGE_SIZE + i for i in rows]))
            self._blocks[group].release([page])
        return copies

    def is_coming(self, tokens: Sequence[int], space: str, running: Iterable[tuple[Standing, int]]) -> bool:
        """Whether a running prompt is about to compute more of a waiting one than is known. Then it is told where the
        two part. running: with how many tokens each has."""
        for standing, held in running:
            if standing.space != space or standing.read - held < WORTH:
                continue
            common = _common(tokens, standing.tokens[: standing.read])
            if common - max(held, self.tree.match(tokens, space).node.end) >= WORTH:
                self._cut_at(standing, held, common)
                return True
        return False

    def publish(self, standing: Standing, tables: Sequence[Table], held: int) -> None:
        """Full blocks of a prompt that is being read go into the tree; its state does, at a cut."""
        standing.source = 0
        if held > standing.read:
            return
        self._extend(standing, tables, held)
        while standing.cuts and standing.cuts[0] <= held:
            standing.cuts.pop(0)

    def checkpoint(self, standing: Standing, held: int, slot: int) -> int | None:
        """The state behind `held` tokens stays: its slot is the tree's, and the sequence has another one, which is
        returned. None if there is none, or the tree has this state."""
        assert self._slots is not None
        if standing.node.end != held or standing.node.slot or not self._victims.free_slot():
            return None
        self.tree.set_slot(standing.node, slot)
        standing.source = slot
        return self._slots.alloc()

    def leave(self, standing: Standing, tables: Sequence[Table], held: int, slot: int | None, *, keep: bool) -> bool:
        """A sequence that is released leaves what it has. keep: whether that is whole. Whether the slot is the tree's
        now."""
        if standing.tail is not None:  # it never got a page to copy to
            for pool, page in zip(self._blocks, standing.tail.pages, strict=True):
                pool.release([page])
        taken = False
        if keep and held > standing.start:
            known = min(held, len(standing.tokens))  # a text may end inside what was accepted
            self._extend(standing, tables, known if self.reuse.is_exact else min(known, standing.read))
            if self.reuse.is_exact and known == held:
                taken = self._leave_end(standing, tables, held, slot or 0)
        self.tree.unlock(standing.node)
        return taken

    def trim(self) -> None:
        """Idle pages beyond what prefixes may hold are freed."""
        for group, pool in enumerate(self._blocks):
            most = self.reuse.most_idle(group, pool)
            if pool.num_idle > most:
                self._victims.free_pages(group, pool.num_free + pool.num_idle - most)

    def free_pages(self, group: int, num_pages: int) -> None:
        """Evict until so many pages of a group are free, if that can be."""
        self._victims.free_pages(group, num_pages)

    def free_slot(self) -> bool:
        """Evict until a slot is free, if that can be."""
        return self._slots is None or self._victims.free_slot()

    def _extend(self, standing: Standing, tables: Sequence[Table], end: int) -> None:
        node = standing.node
        if node.is_tail:
            assert node.parent is not None
            node = node.parent
        blocks = [table.blocks for table in tables]
        deeper = self.tree.extend(
            node, standing.tokens, end // PAGE_SIZE * PAGE_SIZE, lambda i: [own[i] for own in blocks]
        )
        if deeper.end > standing.node.end:
            self.tree.lock(deeper)
            self.tree.unlock(standing.node)
            standing.stand(deeper)

    def _leave_end(self, standing: Standing, tables: Sequence[Table], held: int, slot: int) -> bool:
        """The state behind the last token, and what lies on a page that is not full."""
        node, rest = standing.node, held % PAGE_SIZE
        if not rest:
            if not slot or node.end != held or node.slot:
                return False
            self.tree.set_slot(node, slot)
            return True
        if node.is_tail:
            assert node.parent is not None
            node = node.parent
        assert node.end == held - rest
        pages = [table.blocks[node.end // PAGE_SIZE] for table in tables]
        tail = self.tree.add_tail(node, standing.tokens[node.end : held], pages, slot)
        return tail is not None and slot != 0

    def _cuts(self, start: int, reach: int, num_tokens: int) -> list[int]:
        """Where the state of a prompt is kept: where it parts from a known one, and near its end."""
        parting, end = (n // self._step * self._step for n in (reach, num_tokens - 1))
        return sorted({cut for cut in (parting, end) if cut - start >= WORTH})

    def _cut_at(self, standing: Standing, held: int, common: int) -> None:
        """Another text parts from this one after `common` tokens."""
        cut = common // self._step * self._step
        if self._slots is not None and cut > held and cut not in standing.cuts:
            standing.cuts = sorted([*standing.cuts, cut])


def _common(first: Sequence[int], second: Sequence[int]) -> int:
    """Tokens that two texts begin with. O(n)."""
    n = min(len(first), len(second))
    if list(first[:n]) == list(second[:n]):
        return n
    low, high = 0, n  # equal up to low, not up to high
    while high - low > 1:
        middle = (low + high) // 2
        if list(first[low:middle]) == list(second[low:middle]):
            low = middle
        else:
            high = middle
    return low
