"""Drafts of requests with a grammar: what it forces is drafted, and what it forbids is not verified.

Neither changes an output. A forced token is verified like any draft, and the masks of the rows decide (`decide`). A
forbidden one would be rejected in any case; only of tokens that were drawn the first forbidden one stays, since the law
of what replaces it depends on its being rejected.
"""

from collections.abc import Mapping

from stretto.core.drafter import Draft
from stretto.core.tree import MAX_TREE_ROWS
from stretto.engine.decide import Asked
from stretto.engine.request import Request
from stretto.engine.scheduler import Plan, Scheduler

FORCED = "grammar"
"""`Draft.source` of forced tokens."""


def legal(draft: Draft, request: Request) -> Draft:
    """What of a draft is worth verifying."""
    if request.matcher is None or not len(draft):
        return draft
    rows = request.matcher.legal(draft.tokens, draft.tree)
    if draft.probs is None:
        return draft.select(rows)
    first = next((row for row in range(1, len(draft) + 1) if row not in rows), len(draft))
    return draft.truncate(first) if draft.tree.is_chain else draft


def forced(
    plan: Plan,
    requests: Mapping[int, Request],
    scheduler: Scheduler,
    ready: Mapping[int, Draft],
    extra: int,
    vocab_size: int,
) -> dict[int, Asked]:
    """What grammars force in this step, by request: within the rows that are left, and as far as there is memory.

    ready: drafts that a drafter has for them, which go further than what is forced if they are longer (they are cut to
    what the grammar allows). extra: rows that the plan keeps for each draft beside its tokens.
    """
    planned = {rid: n + extra for rid, n in plan.budgets.items()}
    spare = scheduler.limits.max_rows - sum(share.num_rows for share in plan.shares) - sum(planned.values())
    found: dict[int, Asked] = {}
    for share in plan.shares:
        request, rid = requests[share.job.rid], share.job.rid
        if request.matcher is None or not share.is_decode or request.is_alone:
            continue
        own = planned.get(rid, 0)
        most = min(max(0, spare) + own, MAX_TREE_ROWS - 1, share.job.remaining - 1)
        tokens = request.matcher.forced(most)
        tokens = tokens[: next((n for n, t in enumerate(tokens) if t >= vocab_size), len(tokens))]
        if not tokens or min(len(ready.get(rid, ())), plan.budgets.get(rid, 0)) > len(tokens):
            continue
        if scheduler.grant(share.job, len(tokens)):
            found[rid] = Asked(request, Draft(tokens, source=FORCED))
            spare -= max(0, len(tokens) - own)
    return found


def is_forced(asked: Asked) -> bool:
    """Whether its draft is a grammar's, of which no drafter knows."""
    return asked.draft.source == FORCED
