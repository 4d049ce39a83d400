"""JSON out: one encoder for all responses."""

from collections.abc import Mapping
from typing import Any

import msgspec
from starlette.responses import Response

encode = msgspec.json.encode


class Json(Response):
    """A response that is one JSON value."""

    media_type = "application/json"

    def __init__(self, content: Any, status: int = 200, *, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(content, status, dict(headers or {}))

    def render(self, content: Any) -> bytes:
        return encode(content)
