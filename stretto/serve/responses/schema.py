"""The body of `/v1/responses`."""

from typing import Annotated, Any, Literal

from msgspec import Meta, Struct

from stretto.serve.schema import MAX_TOOLS, Name, Positive, Sampled
from stretto.text.conversation import MAX_MESSAGES

Items = Annotated[list[dict[str, Any]], Meta(min_length=1, max_length=MAX_MESSAGES)]


class TextOptions(Struct, frozen=True):
    """format: of the answer, an object with `type`."""

    format: dict[str, Any] | None = None
    verbosity: str | None = None


class ReasoningOptions(Struct, frozen=True):
    """effort: for templates that read it. The thinking is given whole where OpenAI gives a summary."""

    effort: Annotated[str, Meta(max_length=64)] | None = None
    summary: str | None = None
    generate_summary: str | None = None


class ResponsesRequest(Sampled, kw_only=True, frozen=True):
    """Stateless: everything that the model shall know stands in `input`. Sampling fields that OpenAI does not have here
    are those of the other routes."""

    input: str | Items
    instructions: str | None = None
    max_output_tokens: Positive | None = None
    text: TextOptions | None = None
    reasoning: ReasoningOptions | None = None
    tools: Annotated[list[dict[str, Any]], Meta(max_length=4 * MAX_TOOLS)] | None = None
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    include: Annotated[list[str], Meta(max_length=64)] | None = None
    truncation: Literal["auto", "disabled"] | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    service_tier: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: Name | None = None
    prompt_cache_retention: str | None = None
    client_metadata: dict[str, Any] | None = None
    context_management: Any = None  # says when a prompt may be cut; it never is
    max_tool_calls: int | None = None  # of tools that OpenAI runs
    # Known, and not here.
    previous_response_id: str | None = None
    conversation: Any = None
    prompt: Any = None
    background: bool | None = None
    top_logprobs: int | None = None
