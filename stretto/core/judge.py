"""The `Judge` socket: which drafts may stay."""

from abc import ABC, abstractmethod
from typing import Any, ClassVar, Literal

from stretto.core.card import Can
from stretto.core.drafter import Draft, Verdict
from stretto.core.sampling import Noise

Head = Literal["picks", "probs"]


class Judge(ABC):
    """Accepts a root path of the draft and adds one token. One law per filler.

    Laws (tests/contracts/test_judge.py): the law of the emitted tokens equals that of plain sampling, by enumeration
    on a toy vocabulary and by a chi-square test through the engine; an empty draft gives plain sampling, temperature 0
    its argmax. What a judge lacks of Can.TREE, Can.DRAWN_TREE and Can.SAMPLED it is not given: the engine sees to it.
    A judge that changes the law says so in its card (`approximate`).
    """

    can: ClassVar[Can] = Can(0)
    """CHAIN, TREE, DRAWN_TREE, SAMPLED: the engine gives it nothing else."""
    head: Head
    """What `judge` reads per row: `picks` (the token plain decoding would emit there) or `probs` (its full law)."""

    @abstractmethod
    def judge(self, draft: Draft, rows: Any, position: int, noise: Noise) -> Verdict:
        """Decide one request.

        rows: for head `picks` N + 1 token ids (a sequence), for `probs` [N + 1, W] fp32 (a tensor), numbered as in
        `draft.tree`. position: absolute position of the token that follows the pending one.
        """
