"""Fixtures of the tests of the server."""

from collections.abc import Iterator
from pathlib import Path

import agents
import pytest
from scripted import ScriptedLLM, saying
from serving import Running, serving, tiny

TEXT = "Once upon a time there was a wörld of bytes."


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint directory: a random two-layer Llama whose tokens are bytes, 128 tokens of context."""
    from command import write_tiny  # with torch, which the scripted models do without

    return write_tiny(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[Running]:
    """One server of a real, if random, model for all tests of a module; after each, nothing may be left of it."""
    with serving(tiny(folder)) as one:
        yield one


@pytest.fixture(scope="module")
def scripted(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """One server of a model that always says `TEXT`."""
    with serving(saying(tmp_path_factory.mktemp("scripted"), TEXT)) as one:
        yield one


@pytest.fixture
def llm(scripted: Running) -> ScriptedLLM:
    """The model of `scripted`, to be told what to say."""
    assert isinstance(scripted.llm, ScriptedLLM)
    return scripted.llm


@pytest.fixture(autouse=True)
def _nothing_is_left(request: pytest.FixtureRequest) -> Iterator[None]:
    yield
    for name in {"server", "scripted", "agent"} & set(request.fixturenames):
        request.getfixturevalue(name).settled()


@pytest.fixture(scope="module")
def agent(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """One server of a model that thinks and calls tools."""
    with agents.agent(tmp_path_factory.mktemp("agent")) as one:
        yield one


@pytest.fixture
def actor(agent: Running) -> Iterator[ScriptedLLM]:
    """The model of `agent`, which is the same at the end as at the beginning."""
    assert isinstance(agent.llm, ScriptedLLM)
    engine = agent.llm.scripted
    say, failing = engine.say, engine.failing
    yield agent.llm
    engine.say, engine.failing = say, failing
    engine.gate.open()
