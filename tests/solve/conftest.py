"""A model for searches on a real engine."""

import json
from pathlib import Path

import pytest
from command import write_tiny

from stretto import LLM


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint directory: a random two-layer Llama whose tokens are bytes, 1,024 tokens of context."""
    path = write_tiny(tmp_path_factory.mktemp("tiny"))
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps({**config, "max_position_embeddings": 1024}))
    return path


@pytest.fixture(scope="session")
def llm(folder: Path) -> LLM:
    return LLM(folder, backend="native", draft="none", max_seqs=6)
