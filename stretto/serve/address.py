"""Where a server listens, and whether that needs keys."""

import os
import socket
import stat
from collections.abc import Sequence
from pathlib import Path

from stretto.core.errors import RunError, UserError
from stretto.serve.app import Access
from stretto.serve.auth import is_loopback


def access_for(address: str, keys: Sequence[str], origins: Sequence[str], *, no_auth: bool) -> Access:
    """Who may ask a server at this IP address. Raises UserError for one that other machines reach without a key."""
    local = is_loopback(address)
    if not (local or keys or no_auth):
        raise UserError(
            f"{address} is reached by other machines, and there is no API key",
            why="whoever reaches it could use the model and read what it is asked",
            try_="--api-key-file FILE, --host 127.0.0.1, or --no-auth behind something that asks for keys",
        )
    return Access(keys=keys, loopback_only=local and not keys, origins=origins)


def resolve(host: str, port: int) -> tuple[socket.AddressFamily, tuple[str, int]]:
    """The address that a host name means here. Raises UserError."""
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
    except (OSError, UnicodeError) as problem:
        reason = problem.strerror if isinstance(problem, OSError) else "it is no host name"
        raise UserError(f"--host {host} is no address of this machine", why=reason) from problem
    return family, (str(address[0]), int(address[1]))


def listen(family: socket.AddressFamily, address: tuple[str, int]) -> socket.socket:
    """A socket that is bound; port 0 = a free one. Raises RunError."""
    try:
        return socket.create_server(address, family=family, backlog=512)
    except OSError as problem:
        raise RunError(
            f"cannot listen on {address[0]} port {address[1]}",
            why=(problem.strerror or str(problem)).lower(),
            try_="another --port; 0 takes a free one",
        ) from problem


def listen_at(path: Path) -> socket.socket:
    """A Unix socket that only its owner may use. One that an earlier server left behind is replaced."""
    listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        if path.exists() and stat.S_ISSOCK(path.stat().st_mode) and not _answers(path):
            path.unlink()
        before = os.umask(0o177)
        try:
            listening.bind(str(path))
        finally:
            os.umask(before)
        listening.listen(512)
    except OSError as problem:
        listening.close()
        reason = (problem.strerror or str(problem)).lower()
        raise RunError(f"cannot listen on {path}", why=reason, try_="another --uds") from problem
    return listening


def url_of(listening: socket.socket) -> str:
    """How clients name it."""
    if listening.family == socket.AF_UNIX:
        return f"unix:{listening.getsockname()}"
    host, port = listening.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def _answers(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as one:
        return one.connect_ex(str(path)) == 0
