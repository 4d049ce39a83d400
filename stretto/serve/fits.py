"""Whether a prompt fits into the context of a model: a text before it is read, and token ids."""

from collections.abc import Sequence

from stretto.serve.errors import TooLong, invalid
from stretto.serve.service import Service

MOST_CHARACTERS = 32  # per token of context: a longer text is refused before it is read


def check_text(service: Service, texts: Sequence[str], param: str) -> None:
    """Raise ApiError for more text than the context could hold, before it is read."""
    have, most = sum(map(len, texts)), MOST_CHARACTERS * service.context
    if have > most:
        raise TooLong(
            f"{param}: {have:,} characters cannot fit into the context of {service.context:,} tokens",
            param,
            have=have,
            most=most,
            unit="characters",
        )


def check_ids(service: Service, ids: Sequence[int], param: str, *, room: int = 1) -> None:
    """Raise ApiError for a prompt that leaves no room for an answer of so many tokens, is empty, or is not of this
    vocabulary."""
    if not ids:
        raise invalid(f"{param}: the prompt is empty", param)
    if len(ids) + room > service.context:
        raise TooLong(
            f"The prompt has {len(ids):,} tokens, and the context of this model is {service.context:,}"
            + (": at least one token must be left for the answer" if room else ""),
            param,
            have=len(ids),
            most=service.context - room,
        )
    if (worst := max(ids)) >= service.llm.llm.engine.runner.vocab_size:
        raise invalid(f"{param}: token id {worst} does not exist", param)
