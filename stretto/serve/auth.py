"""Who may ask: keys, and for a server without keys, that the request was meant for this machine.

Everything is refused that is not on the list of public routes. A key is compared as a digest, in constant time, with
every key there is. Without keys only loopback is bound, and browsers are the danger: a page of another site could have
its own name point to 127.0.0.1 (the Host header tells), or send a request that needs no permission (Origin tells).
"""

import hashlib
import hmac
import ipaddress
from collections.abc import Collection, Sequence
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from stretto.serve.errors import ApiError
from stretto.serve.log import Record

PUBLIC = frozenset({"/health", "/v1/health", "/ping", "/ready"})
ADMIN = frozenset({"/api/pull", "/admin/models/load", "/admin/models/unload"})
"""Paths that change this machine: only a key of the operator's own opens them, also where nobody else needs one."""
PAGE, PAGE_FOLDER = "/", "/page/"  # the web page, which is in every copy of this package


class Keys:
    """The keys that open a server. None of them is kept, only digests."""

    def __init__(self, keys: Sequence[str]) -> None:
        self._digests = [_digest(key) for key in keys]

    def __len__(self) -> int:
        return len(self._digests)

    def whose(self, presented: Sequence[str]) -> int | None:
        """Number of the key that is among those presented; None if there is none. Takes the same time for all."""
        found = None
        for text in presented:
            digest = _digest(text)
            for number, known in enumerate(self._digests):
                if hmac.compare_digest(digest, known):
                    found = number
        return found


class Guard:
    """Lets a request through, or answers 401 or 403. keys: empty = none is asked for; admin_keys: open all that keys
    open, and `ADMIN`; loopback_only: requests must name this machine; origins: of pages that may ask."""

    def __init__(
        self, app: ASGIApp, keys: Keys, *, admin_keys: Keys, loopback_only: bool, origins: Collection[str] = ()
    ) -> None:
        self._app, self._keys, self._admin_keys = app, keys, admin_keys
        self._loopback_only, self._origins = loopback_only, frozenset(origins)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = Headers(scope=scope)
        if self._loopback_only:
            self._check_host(headers)
        is_public = is_open(scope["path"]) and scope["method"] in ("GET", "HEAD")
        if self._keys and not is_public:
            record: Record = scope["state"]["record"]
            record.tenant = self._tenant(headers)
        if scope["path"] in ADMIN and self._admin_keys.whose(_presented(headers)) is None:
            why = "" if self._admin_keys else "; this server was started without --admin-key"
            raise ApiError(403, f"This needs the admin key{why}", code="admin_key_needed")
        await self._app(scope, receive, send)

    def _check_host(self, headers: Headers) -> None:
        if not is_loopback(host_of(headers.get("host", ""))):
            raise ApiError(403, "The Host header does not name this machine", code="host_not_allowed")
        origin = headers.get("origin")
        if origin is None or origin in self._origins or "*" in self._origins:
            return
        if not is_loopback(urlsplit(origin).hostname or ""):
            raise ApiError(403, "Pages of this origin may not use this server", code="origin_not_allowed")

    def _tenant(self, headers: Headers) -> str:
        presented = _presented(headers)
        number, admin = self._keys.whose(presented), self._admin_keys.whose(presented)
        if admin is not None:
            return f"admin-{admin + 1}"
        if number is None:
            message = "The API key is wrong" if presented else "An API key is needed: Authorization: Bearer KEY"
            raise ApiError(401, message, code="invalid_api_key", headers={"www-authenticate": "Bearer"})
        return f"key-{number + 1}"


def _presented(headers: Headers) -> list[str]:
    """The keys that a request brings."""
    scheme, _, token = headers.get("authorization", "").partition(" ")
    presented = [token.strip()] if scheme.lower() == "bearer" else []
    return presented + headers.getlist("x-api-key")[:1]


def is_open(path: str) -> bool:
    """Whether a route needs no key for reading."""
    return path in PUBLIC or path == PAGE or path.startswith(PAGE_FOLDER)


def host_of(header: str) -> str:
    """The host of a Host header, without port and brackets."""
    if header.startswith("["):
        return header[1:].partition("]")[0]
    return header.rpartition(":")[0] if ":" in header else header


def is_loopback(host: str) -> bool:
    """Whether a host can only be this machine."""
    if host.lower().rstrip(".") == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _digest(text: str) -> bytes:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()
