"""Log-probabilities of prompts: what a model says of the tokens that it reads."""

from collections.abc import Mapping, Sequence
from contextlib import suppress

from stretto.core.errors import UserError
from stretto.core.scores import Scores
from stretto.engine.request import Request, TokenLogprobs
from stretto.engine.scheduler import Share
from stretto.kernels.sampling import score_logprobs


def num_scored(share: Share, request: Request) -> int:
    """How many rows of a piece of a prompt say something of a token of the prompt."""
    if request.sampling.prompt_logprobs is None or share.is_decode:
        return 0
    return max(0, min(share.num_rows, len(request.prompt) - 1 - share.job.held))


def read_prompts(scores: Scores, shares: Sequence[Share], requests: Mapping[int, Request], first: int) -> None:
    """What the rows from `first` on say, which are those of `num_scored` of all shares, one after the other.

    A row that is not a number says nothing: its request ends as any other does.
    """
    for share in shares:
        request = requests[share.job.rid]
        count, held = num_scored(share, request), share.job.held
        if not count:
            continue
        tokens, k = request.prompt[held + 1 : held + 1 + count], request.sampling.prompt_logprobs or 0
        with suppress(UserError):
            found = score_logprobs(scores, range(first, first + count), tokens, k)
            request.prompt_logprobs[held : held + count] = [TokenLogprobs(*one) for one in found]
        first += count
