"""The bodies of `/v1/messages` and `/v1/messages/count_tokens`."""

from typing import Annotated, Any, Literal

from msgspec import Meta, Struct

from stretto.core.sampling import MAX_STOPS
from stretto.serve.schema import MAX_TOOLS, Name, Positive
from stretto.text.conversation import MAX_MESSAGES

_MOST = 2**31
Blocks = Annotated[list[dict[str, Any]], Meta(max_length=MAX_MESSAGES)]


class BlockMessage(Struct, kw_only=True, frozen=True):
    """A turn: text, or blocks."""

    role: Literal["user", "assistant", "system"]
    content: str | Blocks


class Thinking(Struct, kw_only=True, frozen=True):
    """type: whether to think; `adaptive` leaves it to the model. budget_tokens: for templates that read it."""

    type: Literal["enabled", "disabled", "adaptive"]
    budget_tokens: Positive | None = None
    display: str | None = None


class OutputConfig(Struct, kw_only=True, frozen=True):
    """effort: for templates that read it; format: of the answer."""

    effort: Annotated[str, Meta(max_length=64)] | None = None
    format: dict[str, Any] | None = None


class Counted(Struct, kw_only=True, frozen=True):
    """What makes a prompt."""

    model: Name
    messages: Annotated[list[BlockMessage], Meta(min_length=1, max_length=MAX_MESSAGES)]
    system: str | Blocks | None = None
    tools: Annotated[list[dict[str, Any]], Meta(max_length=4 * MAX_TOOLS)] | None = None
    tool_choice: dict[str, Any] | None = None
    thinking: Thinking | None = None
    output_config: OutputConfig | None = None
    output_format: dict[str, Any] | None = None
    cache_control: dict[str, Any] | None = None  # every prefix is cached, where there is a cache
    speed: str | None = None
    betas: list[str] | None = None
    context_management: dict[str, Any] | None = None  # says when a prompt may be cut; it never is
    # Known, and not here.
    mcp_servers: list[Any] | None = None


class CountRequest(Counted, kw_only=True, frozen=True):
    """`/v1/messages/count_tokens`."""


class MessagesRequest(Counted, kw_only=True, frozen=True):
    """`/v1/messages`."""

    max_tokens: Positive
    stop_sequences: Annotated[list[str], Meta(max_length=MAX_STOPS)] | None = None
    stream: bool | None = None
    temperature: Annotated[float, Meta(ge=0, le=100)] | None = None
    top_p: Annotated[float, Meta(gt=0, le=1)] | None = None
    top_k: Annotated[int, Meta(ge=-1, le=_MOST)] | None = None
    metadata: dict[str, Any] | None = None
    service_tier: str | None = None
    inference_geo: str | None = None
    container: Any = None
