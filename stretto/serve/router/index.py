"""Which beginnings of texts were sent to which replica: a bounded, approximate tree of prefixes.

A text is cut into blocks, and the hash of a block is made from its bytes and the hash before it, so that a hash stands
for the whole text up to there. Equal hashes of different texts cost a detour, never an answer: Python's are keyed anew
in every process.
"""

from collections import OrderedDict
from collections.abc import Sequence

BLOCK = 128  # bytes of text
BYTES = 4  # per token, about
TOKENS = BLOCK // BYTES
MOST_BLOCKS = 1 << 13  # of one text: 1 MiB; what follows is not looked at


def chain(text: bytes, space: str) -> tuple[int, ...]:
    """The hashes of the whole blocks of a text. Texts of different spaces have no hash in common."""
    found, last = list[int](), hash(space)
    for begin in range(0, min(len(text) // BLOCK, MOST_BLOCKS) * BLOCK, BLOCK):
        last = hash((last, text[begin : begin + BLOCK]))
        found.append(last)
    return tuple(found)


class PrefixIndex:
    """most: blocks that are remembered of each replica; those that were not met for longest go first."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._known: dict[int, OrderedDict[int, None]] = {}

    def add(self, blocks: Sequence[int], number: int) -> None:
        """A text was sent to replica `number`."""
        known = self._known.setdefault(number, OrderedDict())
        for block in reversed(blocks):  # the beginning last: a text is forgotten from its end
            known[block] = None
            known.move_to_end(block)
        while len(known) > self._most:
            known.popitem(last=False)

    def known(self, blocks: Sequence[int], number: int) -> int:
        """How many blocks at the beginning of a text replica `number` was sent before."""
        known = self._known.get(number, OrderedDict())
        return next((i for i, block in enumerate(blocks) if block not in known), len(blocks))

    def forget(self, number: int) -> None:
        """Replica `number` holds nothing any more."""
        self._known.pop(number, None)
