"""The bodies that clients send. A field that may be left out may be null, too; bounds are part of the type.

What is known to clients but cannot be done yet is a field here all the same, so that it is refused by name (`refused`)
and never ignored.
"""

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, Struct

from stretto.core.sampling import MAX_BIASES, MAX_LOGPROBS, MAX_STOPS
from stretto.text.conversation import MAX_MESSAGES

MAX_N, MAX_TOOLS, MAX_PROMPTS, MAX_STOP_IDS = 128, 128, 1024, 1024
_MOST, _INT64 = 2**31, 2**63 - 1

Positive = Annotated[int, Meta(ge=1, le=_MOST)]
Natural = Annotated[int, Meta(ge=0, le=_MOST)]
Name = Annotated[str, Meta(min_length=1, max_length=512)]
Penalty = Annotated[float, Meta(ge=-2, le=2)]
Share = Annotated[float, Meta(ge=0, le=1)]
Ids = Annotated[list[Natural], Meta(max_length=MAX_STOP_IDS)]


class StreamOptions(Struct, frozen=True):
    """include_usage: one more chunk at the end, with the token counts of all choices."""

    include_usage: bool | None = None


class Sampled(Struct, kw_only=True, frozen=True):
    """What every generating route takes. The names are OpenAI's, and vLLM's where OpenAI has none."""

    model: Name | None = None
    max_tokens: Positive | None = None
    min_tokens: Natural | None = None
    temperature: Annotated[float, Meta(ge=0, le=100)] | None = None
    top_p: Annotated[float, Meta(gt=0, le=1)] | None = None
    top_k: Annotated[int, Meta(ge=-1, le=_MOST)] | None = None
    min_p: Share | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    repetition_penalty: Annotated[float, Meta(ge=1e-3, le=1e3)] | None = None
    logit_bias: Annotated[dict[str, Annotated[float, Meta(ge=-100, le=100)]], Meta(max_length=MAX_BIASES)] | None = None
    seed: Annotated[int, Meta(ge=-1, le=_INT64)] | None = None  # -1, as llama.cpp has it: a random one
    stop: str | Annotated[list[str], Meta(max_length=MAX_STOPS)] | None = None
    stop_token_ids: Ids | None = None
    ignore_eos: bool | None = None
    skip_special_tokens: bool | None = None
    n: Annotated[int, Meta(ge=1, le=MAX_N)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    user: Annotated[str, Meta(max_length=512)] | None = None
    metadata: dict[str, Any] | None = None
    priority: Annotated[int, Meta(ge=-_MOST, le=_MOST)] | None = None
    timeout: Annotated[float, Meta(gt=0, le=86400)] | None = None
    cache_salt: Annotated[str, Meta(min_length=1, max_length=256)] | None = None
    echo_params: bool | None = None
    return_token_ids: bool | None = None
    draft: bool | None = None  # ours: false = plain decoding, the same tokens
    return_steps: bool | None = None  # ours: chunks of a stream say how their tokens came to be (`origins`)
    # The form of the text: one of them at most (`forms`).
    structured_outputs: dict[str, Any] | None = None
    guided_json: Any = None
    guided_regex: str | None = None
    guided_choice: list[str] | None = None
    guided_grammar: str | None = None
    grammar: str | None = None
    json_schema: Any = None
    # Known, and not here.
    best_of: int | None = None
    prompt_logprobs: Any = None
    include_stop_str_in_output: bool | None = None
    lora: Any = None
    truncate_prompt_tokens: Any = None
    store: bool | None = None


class Message(Struct, kw_only=True, frozen=True, omit_defaults=True):
    """A turn. What the template may read beside role and content is handed on as it is."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | list[dict[str, Any]] | None = None
    name: str | None = None
    reasoning: str | None = None
    reasoning_content: str | None = None
    tool_calls: list[dict[str, Any]] | None = None
    tool_call_id: str | None = None


Messages = Annotated[list[Message], Meta(min_length=1, max_length=MAX_MESSAGES)]
Tools = Annotated[list[dict[str, Any]], Meta(max_length=MAX_TOOLS)]


class ChatRequest(Sampled, kw_only=True, frozen=True):
    """`/v1/chat/completions`."""

    messages: Messages
    max_completion_tokens: Positive | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Meta(ge=0, le=MAX_LOGPROBS)] | None = None
    tools: Tools | None = None
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    response_format: dict[str, Any] | None = None
    reasoning_effort: Annotated[str, Meta(max_length=64)] | None = None
    thinking_budget: Natural | None = None
    documents: Annotated[list[dict[str, Any]], Meta(max_length=MAX_PROMPTS)] | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    # Known, and not here.
    chat_template: str | None = None
    continue_final_message: bool | None = None
    functions: Any = None
    function_call: Any = None
    audio: Any = None
    modalities: list[str] | None = None
    web_search_options: Any = None


class CompletionRequest(Sampled, kw_only=True, frozen=True):
    """`/v1/completions`. prompt: a text, token ids, or several of either."""

    prompt: str | Annotated[list[str | int | list[Natural]], Meta(min_length=1)]
    echo: bool | None = None
    logprobs: Annotated[int, Meta(ge=0, le=MAX_LOGPROBS)] | None = None
    # Known, and not here.
    suffix: str | None = None


class EmbeddingRequest(Struct, kw_only=True, frozen=True):
    """`/v1/embeddings`. input: as a prompt of `/v1/completions`. dimensions: the first so many numbers of a vector."""

    input: Annotated[str, Meta(min_length=1)] | Annotated[list[str | int | list[Natural]], Meta(min_length=1)]
    model: Name | None = None
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: Positive | None = None
    user: Annotated[str, Meta(max_length=512)] | None = None
    timeout: Annotated[float, Meta(gt=0, le=86400)] | None = None


class TokenizeRequest(Struct, kw_only=True, frozen=True):
    """`/tokenize`, in llama.cpp's form (content) and in both of vLLM's (prompt, messages)."""

    model: Name | None = None
    content: str | None = None
    add_special: bool | None = None
    parse_special: bool | None = None
    with_pieces: bool | None = None
    prompt: str | None = None
    messages: Messages | None = None
    add_special_tokens: bool | None = None
    return_token_strs: bool | None = None
    add_generation_prompt: bool | None = None
    tools: Tools | None = None
    chat_template_kwargs: dict[str, Any] | None = None


class DetokenizeRequest(Struct, kw_only=True, frozen=True):
    """`/detokenize`."""

    tokens: list[Natural]
    model: Name | None = None


class LoadPrefixRequest(Struct, kw_only=True, frozen=True):
    """`/admin/prefix/load`. tenant: whose requests go on from it, as the log names them; None = the caller's."""

    name: Name
    model: Name | None = None
    tenant: Name | None = None
    cache_salt: Annotated[str, Meta(min_length=1, max_length=256)] | None = None


class SavePrefixRequest(LoadPrefixRequest, kw_only=True, frozen=True):
    """`/admin/prefix/save`: a prompt, or a conversation."""

    prompt: str | list[Natural] | None = None
    messages: Messages | None = None
    tools: Tools | None = None
    add_generation_prompt: bool | None = None
    chat_template_kwargs: dict[str, Any] | None = None


class TemplateRequest(Struct, kw_only=True, frozen=True):
    """`/apply-template`."""

    messages: Messages
    model: Name | None = None
    add_generation_prompt: bool | None = None
    tools: Tools | None = None
    chat_template_kwargs: dict[str, Any] | None = None


def plain(value: Any) -> Any:
    """Structs as the objects that chat templates read, without the fields that were left out."""
    return msgspec.to_builtins(value)


class ModelRequest(Struct, kw_only=True, frozen=True):
    """`/admin/models/load` and `/admin/models/unload`. model: one of the names that are served."""

    model: Name
