"""What a client is told when something goes wrong: one body for all routes, a status, and whether to try again.

Clients of OpenAI's kind repeat a request on 408, 409, 429 and 5xx unless `x-should-retry` is false. So a refusal that
would be the same next time says so, and only what passes by itself (busy, loading, draining) is left to be repeated.
"""

import math
import re
from collections.abc import Mapping
from typing import Any

from starlette.exceptions import HTTPException

from stretto.core.errors import BusyError, FitError, MissingDependency, ModelFileError, RunError, UserError
from stretto.core.sampling import Sampling
from stretto.llm.admission import Closed

_KINDS = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    408: "timeout_error",
    409: "cancelled_error",
    429: "rate_limit_error",
    500: "server_error",
    501: "not_supported_error",
    503: "unavailable_error",
}
_PARAMS = frozenset(Sampling.names())


class ApiError(Exception):
    """An answer that is an error. param: the field it is about. retry_after: seconds until it may be repeated; None =
    repeating it changes nothing."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | int | None = None,
        retry_after: float | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.param, self.code = status, message, param, code
        self.retry_after, self._headers = retry_after, headers or {}

    @property
    def body(self) -> dict[str, Any]:
        """`{"error": {"message", "type", "param", "code"}}`."""
        kind = _KINDS.get(self.status, "invalid_request_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}

    @property
    def headers(self) -> dict[str, str]:
        """Of the response."""
        if self.retry_after is not None:
            again = {"retry-after": str(max(1, math.ceil(self.retry_after)))}
        else:
            again = {} if self.status == 500 else {"x-should-retry": "false"}
        return {**again, **self._headers}

    def renamed(self, names: Mapping[str, str]) -> "ApiError":
        """The same under the names that a client has for fields; positions in a list that it did not write are left
        out."""
        head = re.split(r"[.\[]", self.param or "", maxsplit=1)[0]
        if head not in names:
            return self
        self.param = names[head]
        begun = re.match(rf"{re.escape(head)}(?=:)", self.message)
        self.message = names[head] + self.message[begun.end() :] if begun else f"{names[head]}: {self.message}"
        return self


class TooLong(ApiError):
    """A prompt for which the context is too short. have, most: its size and the bound, in `unit`."""

    def __init__(self, message: str, param: str, *, have: int, most: int, unit: str = "tokens") -> None:
        super().__init__(400, message, param=param, code="context_length_exceeded")
        self.have, self.most, self.unit = have, most, unit


def invalid(message: str, param: str | None = None, code: str | None = None) -> ApiError:
    """A request that cannot be served as it is."""
    return ApiError(400, message, param=param, code=code)


def loading() -> ApiError:
    """The body that llama.cpp's server gives, which clients wait on."""
    return ApiError(503, "Loading model", code=503, retry_after=1)


def unloaded(name: str) -> ApiError:
    """A question about the engine of a model that is not loaded; asking does not load it."""
    return ApiError(503, f"The model {name!r} is not loaded", code="model_unloaded", retry_after=10)


def model_not_found(name: str) -> ApiError:
    """There is none of this name."""
    return ApiError(404, f"There is no model {name!r} here", param="model", code="model_not_found")


def draining() -> ApiError:
    """No new work."""
    return ApiError(503, "The server is shutting down", code=503, retry_after=5)


def fault(request_id: str) -> ApiError:
    """A defect of ours. What it was stands in the log, under the same id."""
    return ApiError(500, f"The server failed on this request; its id is {request_id}", code=request_id)


def of_problem(problem: BaseException, param: str | None = None) -> ApiError | None:
    """What a client may know of `problem`; None if it is a fault. param: the field that was being read."""
    if isinstance(problem, ApiError):
        return problem
    if isinstance(problem, HTTPException):
        return ApiError(problem.status_code, problem.detail, headers=problem.headers)
    if isinstance(problem, Closed):
        return draining()
    if isinstance(problem, BusyError):
        return ApiError(429, said(problem), code="busy", retry_after=problem.retry_after)
    if isinstance(problem, UserError) and not isinstance(
        problem, RunError | FitError | ModelFileError | MissingDependency
    ):
        first = problem.error.partition(" ")[0].partition("[")[0]
        return invalid(said(problem), first if first in _PARAMS else param)
    return None


def said(problem: UserError) -> str:
    """Its lines as a sentence."""
    parts = [problem.error, problem.why, f"try {problem.try_}" if problem.try_ else None]
    return "; ".join(part for part in parts if part)
