"""The `Judge` socket: which drafts may stay."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from stretto.core.card import Can
from stretto.core.drafter import Draft, Verdict

Head = Literal["picks", "probs"]


@dataclass(frozen=True, slots=True)
class Noise:
    """The random stream of one request: counter-based, so batch-mates and preemption never shift it.

    Keyed by (seed, child); every draw names its absolute position and its purpose (see kernels/sampling).
    """

    seed: int
    child: int = 0


class Judge(ABC):
    """Accepts a root path of the draft and adds one token. One law per filler.

    Laws (tests/contracts/test_judge.py): the law of the emitted tokens equals that of plain sampling, by enumeration
    on a toy vocabulary and by a chi-square test through the engine; an empty draft gives plain sampling. A judge
    without Can.TREE is given chains, one without Can.SAMPLED no temperatures: the engine sees to it.
    """

    can: ClassVar[Can] = Can(0)
    """CHAIN, TREE, SAMPLED: the engine gives it nothing else."""
    head: Head
    """What `judge` reads per row: `picks` (the token plain decoding would emit there) or `probs` (its full law)."""

    @abstractmethod
    def judge(self, draft: Draft, rows: Any, position: int, noise: Noise) -> Verdict:
        """Decide one request.

        rows: for head `picks` N + 1 token ids (a sequence), for `probs` [N + 1, W] fp32 (a tensor); row 0 is the
        pending token, row i + 1 is node i. position: absolute position of the token that follows the pending one.
        """


def children(draft: Draft) -> Sequence[Sequence[int]]:
    """For the pending token (index 0) and every node i (index i + 1): its child nodes, in order."""
    found: list[list[int]] = [[] for _ in range(len(draft) + 1)]
    for node in range(len(draft)):
        parent = node - 1 if draft.parents is None else draft.parents[node]
        found[parent + 1].append(node)
    return found
