"""What a prompt says of itself while it is read: log-probabilities of its tokens, or its embedding."""

from collections.abc import Mapping, Sequence
from contextlib import suppress

from stretto.core.errors import UserError
from stretto.core.scores import Outputs
from stretto.engine.request import Request, TokenLogprobs
from stretto.engine.scheduler import Share
from stretto.kernels.sampling import score_logprobs


def rows_to_read(share: Share, request: Request) -> range:
    """Which rows of a piece of a prompt say something of the prompt."""
    if request.pool is not None:
        return request.pool.rows(share.job.held, share.num_rows)
    if request.sampling.prompt_logprobs is None or share.is_decode:
        return range(0)
    return range(max(0, min(share.num_rows, len(request.prompt) - 1 - share.job.held)))


def read_prompts(outputs: Outputs, shares: Sequence[Share], requests: Mapping[int, Request], first: int) -> None:
    """What the rows from `first` on say, which are those of `rows_to_read` of all shares, one after the other.

    A row that is not a number says nothing: its request ends as any other does.
    """
    for share in shares:
        request = requests[share.job.rid]
        count, held = len(rows_to_read(share, request)), share.job.held
        if not count:
            continue
        rows = range(first, first + count)
        first += count
        if request.pool is not None:
            request.pool.read(held, map(outputs.hidden, rows))
            continue
        tokens, k = request.prompt[held + 1 : held + 1 + count], request.sampling.prompt_logprobs or 0
        with suppress(UserError):
            found = score_logprobs(outputs.scores, rows, tokens, k)
            request.prompt_logprobs[held : held + count] = [TokenLogprobs(*one) for one in found]
