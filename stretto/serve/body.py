"""The body of a request: bounded while it is read, then checked against the struct of its route.

Sizes are checked before anything is parsed, types and bounds before anything is allocated. JSON is strict here: a
boolean is no integer, NaN and infinities are no numbers, an exponent that overflows is refused, and so is what is
nested too deep.
"""

import asyncio
import re
from typing import TypeVar

import msgspec
from starlette.datastructures import Headers
from starlette.types import Receive, Scope

from stretto.serve.errors import ApiError, invalid

T = TypeVar("T", bound=msgspec.Struct)
MAX_BODY = 8 << 20  # bytes
READ_SECONDS = 60.0  # until a body must be there
_PATH = re.compile(r"(.*) - at `(?:key in )?\$(.*)`", re.S)


class Gone(Exception):
    """The client left before the body was complete."""


async def read_body(scope: Scope, receive: Receive, limit: int) -> bytes:
    """All of it. Raises ApiError: 413 for more than `limit` bytes, declared or sent, 408 for one that does not come."""
    headers = Headers(scope=scope)
    if headers.get("content-encoding", "identity").strip().lower() not in ("", "identity"):
        raise ApiError(415, "The body must not be compressed", headers={"accept-encoding": "identity"})
    declared = headers.get("content-length", "0")
    too_large = ApiError(413, f"The body is larger than {limit:,} bytes", code="request_too_large")
    if not declared.isdigit() or int(declared) > limit:
        raise too_large
    blocks, size = list[bytes](), 0
    try:
        async with asyncio.timeout(READ_SECONDS):
            while True:
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise Gone
                blocks.append(message.get("body", b""))
                size += len(blocks[-1])
                if size > limit:
                    raise too_large
                if not message.get("more_body", False):
                    return b"".join(blocks)
    except TimeoutError:
        raise ApiError(408, f"The body did not arrive within {READ_SECONDS:.0f} seconds") from None


def parse(body: bytes, kind: type[T]) -> tuple[T, list[str]]:
    """The request, and the names in it that are no fields of `kind`. Raises ApiError."""
    try:
        found = msgspec.json.decode(body, type=kind)
        names = msgspec.json.decode(body, type=dict[str, msgspec.Raw])
    except msgspec.ValidationError as problem:
        raise invalid_value(str(problem)) from None
    except msgspec.DecodeError as problem:
        raise invalid(f"The body is not JSON: {problem}", code="invalid_json") from None
    except RecursionError:
        raise invalid("The body is nested too deep", code="invalid_json") from None
    known = {field.encode_name for field in msgspec.structs.fields(kind)}
    return found, [name for name in names if name not in known]


def invalid_value(text: str, inside: str = "") -> ApiError:
    """msgspec says what was expected and at which path; it never repeats a value but that of a wrong choice. inside:
    the path of what was read."""
    found = _PATH.fullmatch(text)
    message, path = (found[1], (inside + found[2]).lstrip(".")) if found else (text, inside)
    if missing := re.fullmatch(r"Object missing required field `(\w+)`", message):
        path = f"{path}.{missing[1]}".lstrip(".")
        return invalid(f"{path} is missing", path, "missing_required_parameter")
    message = re.sub(r"Invalid enum value .*", "Invalid value", message)
    return invalid(f"{path}: {message}" if path else message, path or None, "invalid_value")
