"""From the fields of a request to `Sampling`."""

import random

from stretto.core.sampling import Sampling
from stretto.serve.errors import invalid
from stretto.serve.schema import Sampled


def sampling_of(request: Sampled, *, max_tokens: int | None, logprobs: int | None) -> Sampling:
    """How tokens are chosen. max_tokens, logprobs: as the route understands its fields. Raises ApiError, UserError."""
    seed = None if request.seed == -1 else request.seed
    if seed is None and (request.n or 1) > 1:
        seed = random.SystemRandom().getrandbits(63)  # one for all answers, which are numbered
    return Sampling(
        max_tokens=max_tokens,
        min_tokens=request.min_tokens or 0,
        temperature=request.temperature,
        top_p=request.top_p,
        top_k=request.top_k,
        min_p=request.min_p,
        presence_penalty=request.presence_penalty or 0.0,
        frequency_penalty=request.frequency_penalty or 0.0,
        repetition_penalty=request.repetition_penalty,
        logit_bias=_biases(request.logit_bias or {}),
        seed=seed,
        stop=() if request.stop is None else request.stop,
        stop_token_ids=tuple(request.stop_token_ids or ()),
        ignore_eos=bool(request.ignore_eos),
        logprobs=logprobs,
    )


def _biases(given: dict[str, float]) -> dict[int, float]:
    found = {}
    for token, bias in given.items():
        if not (token.isascii() and token.isdigit() and len(token) < 11):
            raise invalid("logit_bias: its keys must be token ids", "logit_bias")
        found[int(token)] = bias
    return found
