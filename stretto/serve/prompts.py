"""Prompts that are no conversations: a text, token ids, or several of either."""

from collections.abc import Callable, Sequence

from stretto.core.errors import UserError
from stretto.llm.asynchronous import AsyncLLM
from stretto.serve.errors import invalid, of_problem
from stretto.serve.fits import check_ids, check_text
from stretto.serve.schema import MAX_PROMPTS
from stretto.serve.service import Service

Encode = Callable[[str], list[int]]


def prompts_of(prompt: str | Sequence[str | int | list[int]], param: str = "prompt") -> list[str | list[int]]:
    """One or several. param: the field they stand in. Raises ApiError."""
    if isinstance(prompt, str):
        return [prompt]
    if all(isinstance(item, int) for item in prompt):
        ids = [item for item in prompt if isinstance(item, int)]
        if min(ids) < 0 or max(ids) >= 2**31:
            raise invalid(f"{param}: a token id is out of range", param)
        return [ids]
    found = [item for item in prompt if not isinstance(item, int)]
    if len(found) < len(prompt) or len({type(item) for item in found}) > 1:
        raise invalid(f"{param}: a text, token ids, a list of texts, or a list of lists of token ids", param)
    if len(found) > MAX_PROMPTS:
        raise invalid(f"{param}: {len(found):,} prompts; at most {MAX_PROMPTS:,} are taken", param)
    return list(found)


async def encode_text(
    service: Service,
    llm: AsyncLLM,
    prompt: str | list[int],
    *,
    param: str = "prompt",
    encode: Encode | None = None,
    room: int = 1,
) -> list[int]:
    """Ids of a prompt without a template, checked. encode: how a text becomes ids, if not as one that is continued;
    room: see `check_ids`. Raises ApiError."""
    encode = encode or llm.llm.encode
    if isinstance(prompt, str):
        check_text(service, [prompt], param)
    try:
        ids = await llm.offload(lambda: encode(prompt)) if isinstance(prompt, str) else prompt
    except UserError as problem:
        raise of_problem(problem, param) or problem from None
    check_ids(service, ids, param, room=room)
    return ids
