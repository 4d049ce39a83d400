"""Walking down a draft along tokens that are chosen without it: the law `tree_point`, shared by three judges.

At the pending token, then at every accepted node, the token y that plain decoding emits there is known. If a child
holds y, the walk moves there; otherwise y is the added token and the walk ends. Whatever was drafted, the emitted
tokens are plain decoding's.
"""

from collections.abc import Callable, Sequence

from stretto.core.drafter import Draft, Verdict
from stretto.core.judge import children


def walk(draft: Draft, token_at: Callable[[int, int], int]) -> Verdict:
    """`token_at(row, depth)`: the plain token after row `row` (0 = pending, i + 1 = node i), `depth` nodes down."""
    if not draft.tokens:
        return Verdict((), (token_at(0, 0),))
    kids: Sequence[Sequence[int]] = children(draft)
    path: list[int] = []
    emitted: list[int] = []
    while True:
        row = path[-1] + 1 if path else 0
        token = token_at(row, len(path))
        emitted.append(token)
        held = [node for node in kids[row] if draft.tokens[node] == token]
        if not held:
            return Verdict(tuple(path), tuple(emitted))
        path.append(held[0])


def walk_picks(draft: Draft, picks: Sequence[int]) -> Verdict:
    """`walk` along picks [N + 1]."""
    assert len(picks) == len(draft) + 1
    return walk(draft, lambda row, _depth: picks[row])
