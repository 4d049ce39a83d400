"""Texts that say the same in the same words: average-linkage clusters by the cosine of their tokens.

A text is the counts of its tokens and of pairs of neighbours. No second model is asked, so this sees words, not
meanings: an embedding of sentences would see more.
"""

import math
from collections import Counter
from collections.abc import Sequence
from itertools import pairwise
from typing import Any


def cosines(texts: Sequence[Sequence[int]]) -> list[list[float]]:
    """[n][n] distances, 1 - cosine; an empty text is far from every other one."""
    bags: list[Counter[Any]] = [Counter([*text, *pairwise(text)]) for text in texts]
    norms = [math.sqrt(sum(count * count for count in bag.values())) for bag in bags]

    def distance(i: int, j: int) -> float:
        product = sum(count * bags[j][word] for word, count in bags[i].items())
        return 1 - product / (norms[i] * norms[j]) if product else 1.0

    return [[0.0 if i == j else distance(i, j) for j in range(len(bags))] for i in range(len(bags))]


def clusters(distances: Sequence[Sequence[float]], cut: float) -> list[int]:
    """The number of the cluster of every item. Two clusters are one while the mean distance between their items is at
    most `cut`, the nearest two first. Numbers are given in the order of first items."""
    groups = [[i] for i in range(len(distances))]

    def mean(one: list[int], other: list[int]) -> float:
        return math.fsum(distances[i][j] for i in one for j in other) / (len(one) * len(other))

    while len(groups) > 1:
        pairs = [(mean(groups[i], groups[j]), i, j) for i in range(len(groups)) for j in range(i + 1, len(groups))]
        nearest, i, j = min(pairs)
        if nearest > cut:
            break
        groups[i] += groups.pop(j)
    numbers = [0] * len(distances)
    for number, group in enumerate(sorted(groups, key=min)):
        for item in group:
            numbers[item] = number
    return numbers
