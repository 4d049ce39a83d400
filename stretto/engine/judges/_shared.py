"""Walking down a draft along tokens that are chosen without it: the law `tree_point`, shared by three judges.

At the pending token, then at every accepted row, the token y that plain decoding emits there is known. If a child
holds y, the walk moves there; otherwise y is the added token and the walk ends. Whatever was drafted, the emitted
tokens are plain decoding's.
"""

from collections.abc import Callable, Sequence

from stretto.core.drafter import Draft, Verdict


def walk(draft: Draft, token_at: Callable[[int, int], int]) -> Verdict:
    """`token_at(row, depth)`: the plain token after a row, `depth` rows below the pending one."""
    path: list[int] = []
    emitted: list[int] = []
    row: int | None = 0
    while row is not None:
        token = token_at(row, len(path))
        emitted.append(token)
        row = next((child for child in draft.tree.children[row] if draft.token(child) == token), None)
        if row is not None:
            path.append(row)
    return Verdict(tuple(path), tuple(emitted))


def walk_picks(draft: Draft, picks: Sequence[int]) -> Verdict:
    """`walk` along picks [N + 1]."""
    assert len(picks) == len(draft) + 1
    return walk(draft, lambda row, _depth: picks[row])
