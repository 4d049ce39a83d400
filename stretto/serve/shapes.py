"""Errors in the form of the API that was asked, which the path tells.

OpenAI      {"error": {"message", "type", "param", "code"}}
Anthropic   {"type": "error", "error": {"type", "message"}, "request_id"}
Ollama      {"error": message}
"""

from typing import Any, Literal

from stretto.serve.errors import ApiError, TooLong
from stretto.serve.json import Json

Api = Literal["openai", "anthropic", "ollama"]
_ANTHROPIC_KINDS = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    408: "timeout_error",
    413: "request_too_large",
    429: "rate_limit_error",
    500: "api_error",
    503: "overloaded_error",
}


def error_response(path: str, problem: ApiError, request_id: str) -> Json:
    """The response that says `problem` to whoever asked for `path`."""
    return Json(error_body(path, problem, request_id), problem.status, headers=problem.headers)


def error_body(path: str, problem: ApiError, request_id: str) -> dict[str, Any]:
    """The body of such a response."""
    api = api_of(path)
    if api == "anthropic":
        return anthropic_error(problem, request_id)
    return {"error": problem.message} if api == "ollama" else problem.body


def api_of(path: str) -> Api:
    """Whose clients ask for this path."""
    if path == "/v1/messages" or path.startswith("/v1/messages/"):
        return "anthropic"
    return "ollama" if path.startswith("/api/") else "openai"


def anthropic_error(problem: ApiError, request_id: str) -> dict[str, Any]:
    """Anthropic's body. Its clients know a prompt that is too long by the first words of the message alone."""
    kind = _ANTHROPIC_KINDS.get(problem.status, "invalid_request_error")
    message = problem.message
    if isinstance(problem, TooLong):
        message = f"prompt is too long: {problem.have} {problem.unit} > {problem.most} maximum"
    return {"type": "error", "error": {"type": kind, "message": message}, "request_id": request_id}
