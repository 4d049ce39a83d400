"""A running server, as the verbs that look at one ask it: JSON by GET, every failure as one of ours."""

import http.client
import json
import socket
from collections.abc import Sequence
from typing import Any
from urllib.parse import urlsplit

import stretto
from stretto.core.env import process_variables
from stretto.core.errors import RunError, UserError

DEFAULT_URL = "http://127.0.0.1:8000"
KEY_VARIABLE = "STRETTO_API_KEY"
TIMEOUT = 10.0  # seconds for one answer
MOST_BYTES = 256 << 20


class Server:
    """url: http://HOST:PORT, https://..., or unix:PATH. key: empty = that of the environment, if there is one."""

    def __init__(self, url: str, key: str = "") -> None:
        self.url, self._key = url, key or process_variables().get(KEY_VARIABLE, "")
        parts = urlsplit(url)
        try:
            port = parts.port
        except ValueError:
            port = -1
        is_unix = parts.scheme == "unix" and bool(parts.path)
        if port == -1 or not (is_unix or (parts.scheme in ("http", "https") and parts.hostname)):
            raise UserError(f"--url {url} is no address of a server", try_=f"{DEFAULT_URL}, or unix:PATH")
        self._scheme, self._host, self._port = parts.scheme, parts.hostname or "localhost", port
        self._path = parts.path if is_unix else parts.path.rstrip("/")

    def get(self, path: str) -> dict[str, Any]:
        """The object at `path`. Raises RunError, and UserError for a key that is missing or wrong."""
        try:
            status, body = self._fetch(path)
        except (OSError, http.client.HTTPException) as problem:
            reason = (problem.strerror if isinstance(problem, OSError) else None) or str(problem) or "no answer"
            raise RunError(
                f"no server answers at {self.url}", why=reason.lower(), try_="stretto serve MODEL, or another --url"
            ) from problem
        try:
            found = json.loads(body)
        except ValueError:
            found = None
        if not isinstance(found, dict):
            raise RunError(f"{self.url} is no server of stretto", why=f"it answered {status} without a JSON object")
        if status == 200:
            return found
        message = found.get("error", {}).get("message") if isinstance(found.get("error"), dict) else None
        said = str(message or f"status {status}")
        if status == 401:
            raise UserError(said.lower(), why="this server asks for one", try_=f"--api-key, or {KEY_VARIABLE}")
        raise RunError(f"the server refused: {said}", try_="another --url" if status == 404 else None)

    def _fetch(self, path: str) -> tuple[int, bytes]:
        prefix = "" if self._scheme == "unix" else self._path
        connection = self._connection()
        headers = {"accept": "application/json", "user-agent": f"stretto/{stretto.__version__}"}
        if self._key:
            headers["authorization"] = f"Bearer {self._key}"
        try:
            connection.request("GET", prefix + path, headers=headers)
            response = connection.getresponse()
            return response.status, response.read(MOST_BYTES)
        finally:
            connection.close()

    def _connection(self) -> http.client.HTTPConnection:
        if self._scheme == "unix":
            return _UnixConnection(self._path)
        kind = http.client.HTTPSConnection if self._scheme == "https" else http.client.HTTPConnection
        return kind(self._host, self._port, timeout=TIMEOUT)


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: str) -> None:
        super().__init__("localhost", timeout=TIMEOUT)
        self._socket_path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(TIMEOUT)
        self.sock.connect(self._socket_path)


def bar(parts: Sequence[tuple[float, str]], width: int) -> list[tuple[str, str]]:
    """Shares of a whole, as texts with styles, `width` characters in all."""
    found, left = [], width
    for share, style in parts:
        count = min(left, round(width * share))
        found.append(("█" * count, style))
        left -= count
    return [*found, ("░" * left, "dim")]
