"""Fixtures of the tests of `LLM` and `AsyncLLM`."""

from dataclasses import replace
from pathlib import Path

import pytest
from command import write_tiny

from stretto.core.env import Env, read_env


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint directory: a random two-layer Llama whose tokens are bytes, 128 tokens of context."""
    return write_tiny(tmp_path_factory.mktemp("tiny"))


@pytest.fixture
def env(tmp_path: Path) -> Env:
    """A cache of its own, with the kernels of everybody."""
    cache = tmp_path / "cache"
    cache.mkdir()
    (cache / "native").symlink_to(read_env().cache_dir / "native")
    return replace(read_env(), cache=cache, no_programs=False)
