"""Which leaves are kept: against all subsets, and against an integer program that another solver solves."""

import itertools
import random

import numpy as np
import pytest
from scipy.cluster.hierarchy import fcluster, linkage
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.spatial.distance import squareform

from stretto.solve.clusters import clusters, cosines
from stretto.solve.selection import Leaf, select, value


def drawn(noise: random.Random, num_leaves: int) -> list[Leaf]:
    """Leaves of a random tree of depth up to 4, with rewards that add up to 1."""
    paths = [tuple(noise.randrange(3) for _ in range(noise.randint(0, 3))) for _ in range(num_leaves)]
    numbers: dict[tuple[int, ...], int] = {}
    rewards = [noise.choice([0.0, noise.random(), noise.random() ** 3]) for _ in paths]
    total = sum(rewards) or 1.0
    return [
        Leaf(
            reward / total,
            tuple(numbers.setdefault(path[:depth], len(numbers)) for depth in range(len(path) + 1)),
            noise.randrange(1 + num_leaves // 2),
        )
        for path, reward in zip(paths, rewards, strict=True)
    ]


def weights(noise: random.Random) -> tuple[float, float]:
    return noise.choice([0.0, 0.5, 1.0, 3.0]), noise.choice([0.0, 0.3, 1.5])


def test_what_is_kept_is_the_best_of_all_subsets() -> None:
    noise = random.Random(0)
    for _ in range(300):
        leaves, (cost, cover) = drawn(noise, noise.randint(1, 9)), weights(noise)
        subsets = [kept for n in range(1, len(leaves) + 1) for kept in itertools.combinations(range(len(leaves)), n)]
        best = max(value(leaves, kept, cost, cover) for kept in subsets)
        kept = select(leaves, cost, cover)
        assert kept == sorted(set(kept)) and kept
        assert value(leaves, kept, cost, cover) == pytest.approx(best, abs=1e-12)


@pytest.mark.parametrize("num_leaves", [16, 40, 64])
def test_what_is_kept_solves_the_integer_program(num_leaves: int) -> None:
    """The program as the paper states it, in its own variables: x of leaves, y of branches, z of clusters."""
    noise = random.Random(num_leaves)
    for _ in range(6):
        leaves, (cost, cover) = drawn(noise, num_leaves), weights(noise)
        branches = sorted({branch for leaf in leaves for branch in leaf.branches})
        kinds = sorted({leaf.cluster for leaf in leaves})
        n, m, k = len(leaves), len(branches), len(kinds)
        gain = [leaf.reward - cost / (m + n) for leaf in leaves] + [-cost / (m + n)] * m + [cover / k] * k
        rows, lower = [[1.0] * n + [0.0] * (m + k)], [1.0]
        for i, leaf in enumerate(leaves):
            for branch in leaf.branches:  # y_j >= x_i
                row = [0.0] * (n + m + k)
                row[i], row[n + branches.index(branch)] = -1.0, 1.0
                rows.append(row)
                lower.append(0.0)
        for number, kind in enumerate(kinds):  # z_k <= sum of x in the cluster
            row = [float(leaf.cluster == kind) for leaf in leaves] + [0.0] * (m + k)
            row[n + m + number] = -1.0
            rows.append(row)
            lower.append(0.0)
        found = milp(
            -np.array(gain),
            constraints=LinearConstraint(np.array(rows), np.array(lower), np.inf),
            integrality=np.ones(n + m + k),
            bounds=Bounds(0, 1),
            options={"mip_rel_gap": 0.0},
        )
        assert value(leaves, select(leaves, cost, cover), cost, cover) == pytest.approx(-found.fun, abs=1e-9)


def test_clusters_are_those_of_average_linkage() -> None:
    noise = random.Random(2)
    for _ in range(60):
        n = noise.randint(2, 14)
        distances = [[0.0] * n for _ in range(n)]
        for i, j in itertools.combinations(range(n), 2):
            distances[i][j] = distances[j][i] = noise.random()
        cut = noise.random()
        wanted = fcluster(linkage(squareform(np.array(distances)), "average"), cut, "distance")
        found = clusters(distances, cut)
        pairs = itertools.combinations(range(n), 2)
        assert all((wanted[i] == wanted[j]) == (found[i] == found[j]) for i, j in pairs)
        assert found[0] == 0 and set(found) == set(range(max(found) + 1))


def test_distances_are_cosines_of_counts() -> None:
    texts = [[1, 2, 3], [1, 2, 3], [3, 9], [], [7]]
    features = sorted({*itertools.chain(*texts)}) + sorted({pair for t in texts for pair in itertools.pairwise(t)})
    counts = np.array(
        [[sum(one == f for one in (*t, *itertools.pairwise(t))) for f in features] for t in texts], dtype=float
    )
    found = cosines(texts)
    for i, j in itertools.product(range(len(texts)), repeat=2):
        norm = np.linalg.norm(counts[i]) * np.linalg.norm(counts[j])
        wanted = 0.0 if i == j else 1 - counts[i] @ counts[j] / norm if norm else 1.0
        assert found[i][j] == pytest.approx(wanted, abs=1e-12)
