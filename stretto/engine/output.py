"""From a verdict to an event: the emitted tokens and their text, up to where the text ends. Or from a prompt that was
read to the event that says its embedding."""

from collections.abc import Callable, Sequence

from stretto.core.errors import UserError
from stretto.engine.decide import Asked, Decision
from stretto.engine.request import Event, FinishReason, Request, TokenLogprobs


def advance(asked: Asked, decision: Decision, logprobs: Sequence[TokenLogprobs], clock: Callable[[], float]) -> Event:
    """Append the emitted tokens to the request until its text ends; the event says whether it did, or that no token
    follows. clock: seconds."""
    request, draft, verdict = asked.request, asked.draft, decision.verdict
    if not verdict.emitted:
        return Event(request.rid, (), "", "error", error=decision.failure)
    timeline = request.timeline
    if timeline.first_token is None:
        timeline.first_token = clock()
    timeline.drafted += len(draft)
    text, kept, reason, failure = "", 0, None, decision.failure
    for token in verdict.emitted:
        request.append(token)
        kept += 1
        try:
            piece, reason = _read(request, token)
        except UserError as why:
            failure = why
            break
        text += piece
        if reason is not None:
            break
    error = failure if reason is None else None  # a text that ended before the failure has none
    accepted = min(kept, len(verdict.path))
    timeline.accepted += accepted
    timeline.steps += max(1, kept - accepted)  # a step gives one token that no draft gave
    return Event(
        rid=request.rid,
        token_ids=verdict.emitted[:kept],
        text=text,
        finish_reason=reason if error is None else "error",
        error=error,
        logprobs=tuple(logprobs[:kept]),
        drafted=len(draft),
        accepted=accepted,
        rejected_ids=tuple(t for row, t in enumerate(draft.tokens, start=1) if row not in verdict.path),
    )


def embed(request: Request) -> Event:
    """The only event of a request whose prompt was read to be embedded."""
    assert request.pool is not None
    try:
        request.embedding = request.pool.vector()
    except UserError as why:
        return Event(request.rid, (), "", "error", error=why)
    return Event(request.rid, (), "", "embedded")


def _read(request: Request, token: int) -> tuple[str, FinishReason | None]:
    """The text that `token` makes certain, and whether it ends the request. Raises UserError if its grammar fails."""
    if token in request.stop_ids:
        return "", "stop"
    if request.matcher is not None:
        request.matcher.accept((token,))
    piece, stopped = request.text.push(token) if request.text is not None else ("", False)
    if stopped or (request.matcher is not None and request.matcher.is_over):
        return piece, "stop"
    return piece, "length" if request.remaining <= 0 else None
