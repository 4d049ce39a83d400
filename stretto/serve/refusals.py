"""Fields that clients know and this server does not serve yet: each is refused by its name."""

from typing import Any

from stretto.serve.errors import ApiError, invalid
from stretto.serve.schema import ChatRequest, CompletionRequest, Sampled

_FIELDS = {
    "prompt_logprobs": "those of a prompt come with `echo` and `logprobs` of /v1/completions",
    "include_stop_str_in_output": "a stop string never stands in the text",
    "lora": "an adapter is a model here: send its name as `model`",
    "truncate_prompt_tokens": "a prompt is never cut; one that is too long is refused",
    "store": "nothing is stored here",
    "chat_template": "a template comes with the model, or by --chat-template, never with a request",
    "continue_final_message": "the last turn of a conversation cannot be continued yet",
    "functions": "use `tools`",
    "function_call": "use `tool_choice`",
    "audio": "this model writes text only",
    "web_search_options": "this server makes no requests of its own",
    "suffix": "text cannot be inserted before a suffix",
}


def refuse_unsupported(request: Sampled, *, order: str) -> None:
    """Raise ApiError for what would otherwise be ignored. order: the policy that decides whether `priority` counts."""
    for name, why in _FIELDS.items():
        if getattr(request, name, None) not in (None, False):
            raise _refused(name, why)
    if request.best_of not in (None, request.n or 1):
        raise _refused("best_of", "only n answers are drawn, and all are returned")
    if request.priority and order != "priority":
        raise _refused("priority", "this server was started without --order priority")
    if request.stream_options is not None and not request.stream:
        raise _refused("stream_options", "it needs `stream`: true")
    if isinstance(request, ChatRequest):
        _refuse_of_chat(request)
    if isinstance(request, CompletionRequest) and request.echo and request.logprobs is not None and request.stream:
        raise _refused("logprobs", "with `echo` they include the prompt's, which come whole: set `stream` to false")


def _refuse_of_chat(request: ChatRequest) -> None:
    if request.modalities not in (None, ["text"]):
        raise _refused("modalities", "this model writes text only")
    if request.top_logprobs is not None and not request.logprobs:
        raise _refused("top_logprobs", "it needs `logprobs`: true")
    for i, message in enumerate(request.messages):
        for k, part in enumerate(message.content if isinstance(message.content, list) else ()):
            if part.get("type") != "text":
                raise invalid(
                    f"messages[{i}].content[{k}] is no text part; this model reads text only",
                    f"messages[{i}].content[{k}]",
                    "unsupported_content",
                )


def _refused(name: str, why: Any) -> ApiError:
    return invalid(f"{name}: {why}", name, "unsupported")
