"""Fixtures of the tests of `AsyncLLM`."""

from pathlib import Path

import pytest
from command import write_tiny


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint directory: a random two-layer Llama whose tokens are bytes, 128 tokens of context."""
    return write_tiny(tmp_path_factory.mktemp("tiny"))
