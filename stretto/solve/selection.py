"""Which leaves of a tree to keep: much reward, few nodes that nobody shares, many kinds of steps (ETS, 2502.13575).

    max over x:  sum_i O_i x_i  -  cost / (M + N) (sum_j y_j + sum_i x_i)  +  cover / K sum_k z_k

x_i: leaf i is kept (one at least); y_j: a kept leaf stands on branch j; z_k: cluster k has a kept leaf. M branches, N
leaves, K clusters; O_i: share of the width that leaf i would get.

Solved exactly, by branch and bound. What couples the parts of a tree are the clusters. With a price m_k for them, every
leaf of cluster k earns m_k, and the cluster itself what is left of its worth:

    L(m) = max over x, y:  sum_i (O_i - c + m_k(i)) x_i - c sum_j y_j   +   sum_k max(0, cover / K - m_k)

is a bound for every 0 <= m <= cover / K, and one walk over the tree computes it. A few steps against the subgradient
bring the prices to where it is low (Lagrangian relaxation).
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

_STEPS = 24  # of the prices, for every bound
_CLOSE = 1e-12  # what is not better by more is not looked for


@dataclass(frozen=True, slots=True)
class Leaf:
    """reward: O_i. branches: the nodes it stands on, from the root down. cluster: of steps like its last one."""

    reward: float
    branches: tuple[int, ...]
    cluster: int


def value(leaves: Sequence[Leaf], kept: Sequence[int], cost: float, cover: float) -> float:
    """What a choice is worth: the objective above. kept: numbers of leaves."""
    branches = {branch for leaf in leaves for branch in leaf.branches}
    paid = {branch for i in kept for branch in leaves[i].branches}
    covered = {leaves[i].cluster for i in kept}
    return (
        sum(leaves[i].reward for i in kept)
        - cost / (len(branches) + len(leaves)) * (len(paid) + len(kept))
        + cover / len({leaf.cluster for leaf in leaves}) * len(covered)
    )


def select(leaves: Sequence[Leaf], cost: float, cover: float) -> list[int]:
    """The numbers of the leaves to keep, in order: a best choice."""
    solver = _Solver(leaves, cost, cover)
    solver.visit(frozenset(range(len(leaves))), frozenset(), {})
    return sorted(solver.best)


class _Solver:
    """best: the choice that is worth most so far."""

    def __init__(self, leaves: Sequence[Leaf], cost: float, cover: float) -> None:
        num_branches = len({branch for leaf in leaves for branch in leaf.branches})
        self._leaves, self._own = leaves, cost / (num_branches + len(leaves))
        self._cover = cover / len({leaf.cluster for leaf in leaves})
        self._worth, self.best = float("-inf"), frozenset[int]()

    def visit(self, free: frozenset[int], kept: frozenset[int], prices: dict[int, float]) -> None:
        """Look for better choices that hold `kept` and some of the leaves that are `free`. prices: good ones nearby."""
        leaves = self._leaves
        paid = frozenset(branch for i in kept for branch in leaves[i].branches)
        gifts = {i for i in free if leaves[i].reward > self._own and paid.issuperset(leaves[i].branches)}
        kept, free = kept | gifts, free - gifts
        covered = {leaves[i].cluster for i in kept}
        free = frozenset(i for i in free if leaves[i].reward > self._own or leaves[i].cluster not in covered)
        if kept:
            self._try(kept)
        if not free:
            return
        bound, chosen, prices = self._bound(free, kept, paid, prices)
        self._try(kept.union(chosen))
        if bound > self._worth + _CLOSE:
            counts: dict[int, int] = defaultdict(int)
            for i in chosen:
                counts[leaves[i].cluster] += 1
            among = chosen or free  # a leaf whose cluster is paid for most often, the one that earns most
            one = max(among, key=lambda i: (counts[leaves[i].cluster], leaves[i].reward, -i))
            self.visit(free - {one}, kept | {one}, prices)
            self.visit(free - {one}, kept, prices)

    def _try(self, kept: frozenset[int]) -> None:
        leaves = self._leaves
        branches = {branch for i in kept for branch in leaves[i].branches}
        worth = sum(leaves[i].reward for i in kept) - self._own * (len(branches) + len(kept))
        worth += self._cover * len({leaves[i].cluster for i in kept})
        if worth > self._worth:
            self._worth, self.best = worth, kept

    def _bound(
        self, free: frozenset[int], kept: frozenset[int], paid: frozenset[int], prices: dict[int, float]
    ) -> tuple[float, frozenset[int], dict[int, float]]:
        """At most this is to be won; the leaves that the relaxed problem keeps beside `kept`; the prices."""
        leaves, covered = self._leaves, {self._leaves[i].cluster for i in kept}
        open_ = {leaves[i].cluster for i in free} - covered
        base = sum(leaves[i].reward for i in kept) - self._own * (len(paid) + len(kept)) + self._cover * len(covered)
        prices = {cluster: prices.get(cluster, self._cover / 2) for cluster in open_}
        best, found = float("inf"), (frozenset[int](), dict[int, float]())
        for step in range(1, _STEPS + 1):
            gains = {i: leaves[i].reward - self._own + prices.get(leaves[i].cluster, 0.0) for i in free}
            gain, chosen = self._relaxed(gains, paid, may_be_empty=bool(kept))
            bound = base + gain + sum(self._cover - price for price in prices.values())
            if bound < best:
                best, found = bound, (chosen, dict(prices))
            if best <= self._worth + _CLOSE:
                break
            counts: dict[int, int] = defaultdict(int)
            for i in chosen:
                counts[leaves[i].cluster] += 1
            for cluster, price in prices.items():
                change = self._cover / step * (counts[cluster] - 1)
                prices[cluster] = min(self._cover, max(0.0, price - change))
        return best, *found

    def _relaxed(
        self, gains: dict[int, float], paid: frozenset[int], *, may_be_empty: bool
    ) -> tuple[float, frozenset[int]]:
        """The best choice where every leaf has a gain of its own: one walk from the leaves up."""
        below: dict[tuple[int, ...], list[tuple[float, frozenset[int]]]] = defaultdict(list)
        for i, gain in gains.items():
            below[self._leaves[i].branches].append((gain, frozenset([i])))
        for path in sorted({p[:n] for p in below for n in range(len(p) + 1)}, key=len, reverse=True):
            parts = below[path]
            if not parts:
                continue
            good = [part for part in parts if part[0] > 0] or [max(parts, key=lambda part: part[0])]
            gain, chosen = sum(part[0] for part in good), frozenset[int]().union(*(part[1] for part in good))
            if not path:
                return (0.0, frozenset()) if may_be_empty and gain <= 0 else (gain, chosen)
            below[path[:-1]].append((gain - self._own * (path[-1] not in paid), chosen))
        raise AssertionError("every leaf has a path")
