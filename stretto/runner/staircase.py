"""What a step costs by its rows: the model is run over rows that nobody wants, beside a context, and nothing stays.

What tokens there are does not matter to how long they take, so the context is reserved and not computed.
"""

import math
import time
from collections.abc import Callable, Sequence

from stretto.runner.runner import Rows, Runner

ROWS = (1, 2, 4, 8, 16, 32)
_CONTEXT = 96  # tokens before the rows
_RID = -1  # of a request that no engine has


def row_seconds(
    runner: Runner,
    rows: Sequence[int] = ROWS,
    *,
    budget: float = 0.3,
    rounds: int = 5,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[int, float]:
    """Seconds of a step of one sequence by its rows, packing and commit included: the shortest run of up to `rounds`
    after one that warms up, all numbers of rows in turn.

    What took longer than a step of more rows did was disturbed, and takes what that took.

    budget: seconds after which nothing more is begun but a step of one row; numbers of rows that were never run are
    left out, and so are those that do not fit into a step or the cache. The runner has no sequences.
    """
    runs: dict[int, list[float]] = {n: [] for n in rows if n <= runner.max_rows}
    begun = clock()
    runner.cache.admit(_RID)
    try:
        _pretend(runner, min(_CONTEXT, runner.sizes.context // 2))
        for _ in range(1 + rounds):
            for n, seconds in runs.items():
                is_late = clock() - begun > budget and (n > 1 or len(seconds) > 1)
                if not is_late and runner.cache.reserve(_RID, n):
                    started = clock()
                    _step(runner, n)
                    seconds.append(clock() - started)
    finally:
        runner.cache.release(_RID)
    found, least = dict[int, float](), math.inf
    for n in sorted(runs, reverse=True):
        if runs[n]:
            found[n] = least = max(1e-9, min(least, *(runs[n][1:] or runs[n])))
    return dict(sorted(found.items()))


def _pretend(runner: Runner, num_tokens: int) -> None:
    """As if so many tokens had been read."""
    while (left := num_tokens - runner.cache.length(_RID)) > 0:
        n = min(runner.max_rows, left)
        if not runner.cache.reserve(_RID, n):
            return
        step = runner.pack([Rows(_RID, [0] * n, is_step=False)])
        runner.cache.commit(step.rids, step.seqs, [()])


def _step(runner: Runner, num_rows: int) -> None:
    """A pending token and drafts, all of which are rejected."""
    step = runner.pack([Rows(_RID, [0] * num_rows, num_draft=num_rows - 1, wants=num_rows)])
    runner.forward(step)
    runner.commit(step, [()])
