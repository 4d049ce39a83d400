"""The web page: the files of `page/`, read once, served with headers that let them load nothing from elsewhere.

No key is needed for them: they hold no data. What the page asks of the server needs one as any client does.
"""

from functools import cache
from importlib.resources import files

from starlette.responses import Response
from starlette.types import ASGIApp, Scope

from stretto.serve.call import Call
from stretto.serve.errors import ApiError

TYPES = {
    "css": "text/css; charset=utf-8",
    "html": "text/html; charset=utf-8",
    "js": "text/javascript; charset=utf-8",
    "svg": "image/svg+xml",
}
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; base-uri 'none';"
    " form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'"
)
HEADERS = {
    "content-security-policy": POLICY,
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "cache-control": "no-cache",
}


@cache
def contents() -> dict[str, bytes]:
    """Every file of the page, by name."""
    found = (one for one in files("stretto.serve").joinpath("page").iterdir() if one.is_file())
    return {one.name: one.read_bytes() for one in found if one.name.rpartition(".")[2] in TYPES}


async def index(call: Call, scope: Scope) -> ASGIApp:
    """The page."""
    return _file("index.html")


async def file(call: Call, scope: Scope) -> ASGIApp:
    """One of its parts. The name is looked up among those that exist: it is no path."""
    name = scope["path_params"]["name"]
    if name not in contents():
        raise ApiError(404, "There is no such file")
    return _file(name)


def _file(name: str) -> Response:
    media_type = TYPES[name.rpartition(".")[2]]
    return Response(contents()[name], headers={**HEADERS, "content-type": media_type})
