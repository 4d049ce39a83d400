"""A package index on 127.0.0.1 with models inside wheels, for the tests of the hub; nothing leaves the machine."""

import hashlib
import io
import random
import threading
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from stretto.core.env import Env, read_env
from stretto.core.errors import RunError
from stretto.hub import models
from stretto.hub.aliases import Alias, Part

MODEL = bytes(range(256)) * 4096  # 1 MiB
WHEEL_NAME = "tiny_model-1.0-py3-none-any.whl"


def make_wheel(package: str, member: str, content: bytes) -> bytes:
    """A wheel that pip accepts too."""
    file, info = io.BytesIO(), f"{package}-1.0.dist-info"
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(member, content)
        archive.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")
    return file.getvalue()


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def alias_of(contents: dict[str, bytes], member: str) -> tuple[Alias, dict[str, bytes]]:
    """The alias whose parts lie in the packages named, in this order, and its wheels by name."""
    parts, made = [], {}
    for package, content in contents.items():
        name, wheel = f"{package}-1.0-py3-none-any.whl", make_wheel(package, f"{package}/{member}", content)
        made[name] = wheel
        parts.append(
            Part(
                project=package.replace("_", "-"),
                version="1.0",
                wheel=name,
                wheel_sha256=sha256(wheel),
                member=f"{package}/{member}",
                sha256=sha256(content),
                num_bytes=len(content),
            )
        )
    whole = b"".join(contents.values())
    return Alias(
        title="a tiny model",
        source="this test",
        license="none",
        architecture="llama",
        family="llama",
        filename="tiny.gguf",
        sha256=sha256(whole),
        num_bytes=len(whole),
        parts=tuple(parts),
    ), made


TINY, (WHEEL,) = (lambda found: (found[0], found[1].values()))(alias_of({"tiny_model": MODEL}, "tiny.gguf"))
KNOWN = {"tiny": TINY}
NOISE = random.Random(0).randbytes(300_000)  # wheels as large as what they hold
PIECES = {"tiny_part1": NOISE[:100_000], "tiny_part2": NOISE[100_000:220_000], "tiny_part3": NOISE[220_000:]}
PARTED, WHEELS = alias_of(PIECES, "data/part.bin")
PARTS = {"tiny": PARTED}


class Index(ThreadingHTTPServer):
    """A package index; `pages` maps paths to (content type, body), `asked` lists what was asked for."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.pages: dict[str, tuple[str, bytes]] = {}
        self.asked: list[tuple[str, str | None]] = []
        self.cut_after: int | None = None  # bytes of a wheel in one answer
        self.gives_ranges = False
        self.sent: list[tuple[str, int]] = []  # bytes of wheels

    @property
    def host(self) -> str:
        return f"127.0.0.1:{self.server_port}"

    @property
    def url(self) -> str:
        return f"http://{self.host}/simple"


class Handler(BaseHTTPRequestHandler):
    server: Index

    def do_GET(self) -> None:
        self.server.asked.append((self.path, self.headers.get("Authorization")))
        kind, body = self.server.pages.get(self.path, ("", b""))
        first, size, status = 0, len(body), 200 if kind else 404
        if kind and self.server.gives_ranges and (asked := self.headers.get("Range")):
            first = int(asked.removeprefix("bytes=").removesuffix("-"))
            status = 206 if first < size else 416
        self.send_response(status)
        self.send_header("Content-Type", kind or "text/plain")
        if status == 206:
            self.send_header("Content-Range", f"bytes {first}-{size - 1}/{size}")
        body = body[first:] if status < 300 else b""
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.path.endswith(".whl"):
            body = body[: self.server.cut_after]
            self.server.sent.append((self.path.rpartition("/")[2], len(body)))
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        pass


@contextmanager
def serving() -> Iterator[Index]:
    """An index that answers, with the wheels of this file."""
    server = Index()
    link = f'<a href="../../files/{WHEEL_NAME}#sha256={TINY.parts[0].wheel_sha256}">{WHEEL_NAME}</a>'
    page = f'<html><body><a href="../../files/tiny_model-0.9.tar.gz">old</a>{link}</body></html>'
    server.pages["/simple/tiny-model/"] = ("text/html", page.encode())
    server.pages[f"/files/{WHEEL_NAME}"] = ("application/octet-stream", WHEEL)
    for name, wheel in WHEELS.items():
        project = name.partition("-")[0].replace("_", "-")
        server.pages[f"/simple/{project}/"] = ("text/html", f'<a href="../../files/{name}">{name}</a>'.encode())
        server.pages[f"/files/{name}"] = ("application/octet-stream", wheel)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def env_of(tmp_path: Path, **variables: str) -> Env:
    return read_env({"STRETTO_CACHE": str(tmp_path / "cache"), "HOME": str(tmp_path), **variables})


def everything_in(env: Env) -> list[str]:
    return sorted(str(p.relative_to(env.cache_dir)) for p in env.cache_dir.rglob("*") if p.is_file())


def refused(env: Env, known: dict[str, Alias], what: str, left: Sequence[str] = ()) -> RunError:
    """A pull fails in three lines, and nothing is left but `left`, with which the next one goes on."""
    with pytest.raises(RunError, match=what) as e:
        models.resolve("tiny", env=env, progress=False, known=known)
    assert e.value.exit_code == 1
    assert [line.partition(":")[0] for line in e.value.lines()] == ["error", "why", "try"]
    unfinished = [f"models/tiny/.pull/{name}" for name in left]
    assert [name for name in everything_in(env) if not name.endswith("/lock")] == sorted(unfinished)
    assert left or not any((env.cache_dir / "models").glob("*/.*"))
    return e.value
