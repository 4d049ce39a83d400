"""Fixtures of the tests of the command line and of the hub."""

import sys
from collections.abc import Iterator
from pathlib import Path

import native
import pytest
from command import Run, write_tiny
from wheel_index import Index, serving

from stretto.cli import main
from stretto.core.env import read_env
from stretto.hub import wheels


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint directory: a random two-layer Llama whose tokens are bytes, 128 tokens of context."""
    return write_tiny(tmp_path_factory.mktemp("tiny"))


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Run:
    """`cli(*words, stdin=...)` -> exit code, stdout, stderr; a cache of kernels alone, no network, no terminal."""
    native.team()  # compiled, if they were not
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "native").symlink_to(read_env().cache_dir / "native")
    monkeypatch.setenv("STRETTO_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("STRETTO_OFFLINE", "1")
    monkeypatch.delenv("STRETTO_TRACEBACK", raising=False)
    file = tmp_path / "standard input"

    def call(*words: object, stdin: str | bytes = "") -> tuple[int, str, str]:
        file.write_bytes(stdin.encode() if isinstance(stdin, str) else stdin)
        with file.open() as stream:
            monkeypatch.setattr(sys, "stdin", stream)
            code = main([str(word) for word in words])
        out, err = capsys.readouterr()
        assert "Traceback" not in err + out
        return code, out, err

    return call


@pytest.fixture
def index() -> Iterator[Index]:
    """A package index on this machine."""
    with serving() as server:
        yield server


@pytest.fixture
def no_pip(monkeypatch: pytest.MonkeyPatch) -> None:
    """pip has no settings and cannot download."""

    def fail(chosen: str, *, requirement: str, folder: Path, quiet: bool) -> None:
        raise wheels.NotFetched(["pip download: no"])

    monkeypatch.setattr(wheels, "fetch_with_pip", fail)
    monkeypatch.setattr(wheels, "_pip_settings", dict[str, str])
