"""Fixtures of the tests of the server."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from command import write_tiny
from serving import Running, serving, tiny


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint directory: a random two-layer Llama whose tokens are bytes, 128 tokens of context."""
    return write_tiny(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[Running]:
    """One server for all tests of a module; after each, nothing may be left of it."""
    with serving(tiny(folder)) as one:
        yield one


@pytest.fixture(autouse=True)
def _nothing_is_left(request: pytest.FixtureRequest) -> Iterator[None]:
    yield
    if "server" in request.fixturenames:
        request.getfixturevalue("server").settled()
