"""`Prefix`: what a text left in a cache, as bytes. It is read out of one cache (`read_out`) and put into another
(`put_in`), as if a request had left it there: files, other processes and slower memory all hold it in this form.

The order of the bytes is that of no memory: token by token, also where pages lie lane by lane.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from stretto.cache.layout import PoolArray, PoolLayout
from stretto.cache.ledger import Ledger
from stretto.cache.manager import Memory
from stretto.cache.prefix import Node, PrefixTree
from stretto.cache.prefix_cache import PrefixCache
from stretto.core.errors import FitError
from stretto.core.pages import PAGE_SIZE, num_pages

MOST_STATES = 2
"""Behind the last token, where longer texts go on, and one before it, from where the same text is read again."""


@dataclass(frozen=True, slots=True)
class Extent:
    """What of a text is there. num_tokens: of the text. firsts: per page group, the position from which on there are
    pages: a multiple of PAGE_SIZE, 0 but for windows. ends: positions behind which there is a state, in order."""

    num_tokens: int
    firsts: tuple[int, ...]
    ends: tuple[int, ...]

    def is_sound(self, layout: PoolLayout) -> bool:
        """Whether a text of so many tokens can be continued from it, in a cache of this layout."""
        n, ends = self.num_tokens, self.ends
        if n < 1 or len(self.firsts) != len(layout.groups) or len(ends) > MOST_STATES:
            return False
        for group, first in zip(layout.groups, self.firsts, strict=True):
            most = 0 if group.window is None else group.first_page(n) * PAGE_SIZE
            if first % PAGE_SIZE or not 0 <= first <= most:
                return False
        if not layout.has_slots:
            return not ends
        return bool(ends) and ends[-1] == n and all(0 < end < n and end % PAGE_SIZE == 0 for end in ends[:-1])

    def shape(self, layout: PoolLayout, number: int) -> tuple[int, int, int]:
        """Of the bytes of an array of the layout: [layers, tokens or states, bytes]."""
        a = layout.arrays[number]
        count = len(self.ends) if a.group is None else self.num_tokens - self.firsts[a.group]
        return a.layers, count, a.numbers * a.item_bytes


@dataclass(frozen=True, slots=True)
class Prefix:
    """tokens: the text. data: per array of the layout its bytes, in the shape that `Extent.shape` says."""

    tokens: tuple[int, ...]
    extent: Extent
    data: Sequence[bytes | memoryview]


def read_out(ledger: Ledger, memory: Memory, tokens: Sequence[int], space: str = "") -> Prefix | None:
    """What the cache has of a text: all of it or a beginning, from which texts can go on. None if there is nothing."""
    assert ledger.prefixes is not None, "this cache keeps no prefixes"
    tree = ledger.prefixes.tree
    node = tree.match([*tokens, 0], space).node  # the last token of what is looked up is never found
    tree.lock(node)
    try:
        return _read(memory, tree, node, tokens) if node.end else None
    finally:
        tree.unlock(node)


def _read(memory: Memory, tree: PrefixTree, node: Node, tokens: Sequence[int]) -> Prefix:
    path = node.path
    stops = [one for one in path if one.slot][-MOST_STATES:]
    resume = stops[0].end if stops else (node.end - 1) // tree.step * tree.step
    firsts = tuple(_first_block(path, i, group.first_page(resume)) for i, group in enumerate(tree.groups))
    extent = Extent(node.end, tuple(first * PAGE_SIZE for first in firsts), tuple(one.end for one in stops))
    data = []
    for number, a in enumerate(memory.layout.arrays):
        if a.group is None:
            data.append(memory.read_units(number, [one.slot for one in stops]))
        else:
            pages = [one.pages[a.group] for one in path[firsts[a.group] :]]
            layers, count, width = extent.shape(memory.layout, number)
            data.append(_cut(memory.read_units(number, pages), layers, len(pages) * PAGE_SIZE * width, count * width))
    return Prefix(tuple(tokens[: node.end]), extent, data)


def put_in(ledger: Ledger, memory: Memory, prefix: Prefix, space: str = "") -> None:
    """Leave a prefix in the cache: pages and slots are free ones, or those of prefixes that nobody uses.

    What the tree has of the text stays as it is. Raises FitError, and the cache is as it was but for what was evicted,
    if there is no room beside the requests that run.
    """
    assert ledger.prefixes is not None, "this cache keeps no prefixes"
    _Insertion(ledger, ledger.prefixes, prefix, space).run(memory)


class _Insertion:
    """tables: per page group, the page of every block, 0 = none. missing: per page group, the blocks whose pages are
    new. slots: of its own, one per state."""

    def __init__(self, ledger: Ledger, cache: PrefixCache, prefix: Prefix, space: str) -> None:
        self._ledger, self._cache, self._prefix, self._space = ledger, cache, prefix, space
        self._tables: list[list[int]] = []
        self._missing: list[list[int]] = []
        self._slots: list[int] = []

    def run(self, memory: Memory) -> None:
        """All of it, or FitError."""
        tree = self._cache.tree
        tree.now += 1
        known = _deepest(tree.root(self._space), self._prefix.tokens)
        tree.lock(known)  # nothing on the way there goes while room is made
        try:
            self._take_pages(known)
            self._take_slots()
            self._write(memory)
            self._grow()
        finally:
            for pool, table in zip(self._ledger.blocks, self._tables, strict=False):
                pool.release([page for page in table if page])
            for slot in self._slots:
                self._ledger.slots.release(slot)
            tree.unlock(known)
            self._cache.trim()

    def _take_pages(self, known: Node) -> None:
        path, extent = known.path, self._prefix.extent
        for group, pool in enumerate(self._ledger.blocks):
            first, end = extent.firsts[group] // PAGE_SIZE, num_pages(extent.num_tokens)
            if end - first > self._cache.reuse.most_idle(group, pool):
                raise self._no_room(
                    f"prefixes may hold {self._cache.reuse.most_idle(group, pool):,} pages, this one {end - first:,}"
                )
            table = [0] * end
            table[first : len(path)] = [one.pages[group] for one in path[first:]]
            pool.incref([page for page in table if page])
            self._tables.append(table)
            missing = [block for block in range(first, end) if not table[block]]
            self._cache.free_pages(group, len(missing))
            pages = pool.alloc(len(missing))
            if pages is None:
                raise self._no_room(f"{len(missing):,} pages are needed, and {pool.num_free:,} are free")
            for block, page in zip(missing, pages, strict=True):
                table[block] = page
            self._missing.append(missing)

    def _take_slots(self) -> None:
        for _ in self._prefix.extent.ends:
            slot = self._ledger.slots.alloc() if self._cache.free_slot() else None
            if slot is None:
                raise self._no_room("no slot of a state is free")
            self._slots.append(slot)

    def _write(self, memory: Memory) -> None:
        extent = self._prefix.extent
        for number, (a, data) in enumerate(zip(memory.layout.arrays, self._prefix.data, strict=True)):
            if a.group is None:
                memory.write_units(number, self._slots, data)
            else:
                missing, first = self._missing[a.group], extent.firsts[a.group]
                starts = [block * PAGE_SIZE - first for block in missing]
                pages = [self._tables[a.group][block] for block in missing]
                memory.write_units(number, pages, _pages(data, a, extent.num_tokens - first, starts))

    def _grow(self) -> None:
        """The tree gets what is written, and keeps it."""
        tree, (tokens, extent) = self._cache.tree, (self._prefix.tokens, self._prefix.extent)
        whole = extent.num_tokens // PAGE_SIZE * PAGE_SIZE
        node = tree.extend(tree.root(self._space), tokens, whole, lambda block: [own[block] for own in self._tables])
        for one in node.ancestors:
            one.used = tree.now
        if whole < extent.num_tokens:
            slot = self._slots[-1] if self._slots else 0
            tail = tree.add_tail(node, tokens[whole:], [own[-1] for own in self._tables], slot)
            if tail is not None and slot:
                self._slots.pop()
        by_end = {one.end: one for one in node.ancestors}
        for end, slot in zip(extent.ends, list(self._slots), strict=False):
            if end in by_end and not by_end[end].slot:
                tree.set_slot(by_end[end], slot)
                self._slots.remove(slot)

    def _no_room(self, why: str) -> FitError:
        text = f"a prefix of {self._prefix.extent.num_tokens:,} tokens does not fit into the cache"
        return FitError(text, why=why, try_="more memory for prefixes (--prefix-cache SIZE), or fewer requests")


def _deepest(root: Node, tokens: Sequence[int]) -> Node:
    """The last whole block of a text that is there, whether texts can go on behind it or not."""
    node = root
    while (child := node.children.get(tuple(tokens[node.end : node.end + PAGE_SIZE]))) is not None:
        node = child
    return node


def _first_block(path: Sequence[Node], group: int, least: int) -> int:
    """The first block from which on all have a page, not before `least`."""
    first = len(path)
    while first > least and path[first - 1].pages[group]:
        first -= 1
    return first


def _cut(data: bytes, layers: int, stride: int, size: int) -> bytes:
    """The first `size` bytes of every layer's `stride`."""
    return data if stride == size else b"".join(data[i * stride : i * stride + size] for i in range(layers))


def _pages(data: bytes | memoryview, a: PoolArray, num_tokens: int, starts: Sequence[int]) -> bytes:
    """Whole pages [layers, pages, PAGE_SIZE, numbers] of what has [layers, num_tokens, numbers]; zeros behind its end.

    starts: of each page, the token that it begins with.
    """
    width, found = a.numbers * a.item_bytes, []
    for layer in range(a.layers):
        for start in starts:
            end = min(start + PAGE_SIZE, num_tokens)
            base = layer * num_tokens
            found.append(bytes(data[(base + start) * width : (base + end) * width]).ljust(a.unit_bytes, b"\0"))
    return b"".join(found)
