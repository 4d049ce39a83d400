"""Chat templates x conversations: what transformers' `apply_chat_template` renders, or refused by both."""

import dataclasses
import tarfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from chat_templates import CONVERSATIONS, SOURCES, Conversation, reference, rendered

from stretto.hub import wheels

# Templates of ours that read the parts of a message; the others are given its text.
PARTS = {"gemma_roles", "granite_documents", "xml_calls"}
# What templates of ours refuse: turns that do not alternate, and tools that a template would not show to the model.
REFUSED = {("gemma_roles", "tools"), ("gemma_roles", "call")}
SDIST = "llama_cpp_python-0.3.36.tar.gz"  # of PyPI; it holds templates of about 70 published models


def test_the_table_is_whole() -> None:
    assert len(SOURCES) == 12 and len(CONVERSATIONS) == 7


@pytest.mark.parametrize("name", CONVERSATIONS)
@pytest.mark.parametrize("family", SOURCES)
@pytest.mark.parametrize("prompt", [True, False], ids=["open", "closed"])
def test_own_templates_equal_transformers(family: str, name: str, prompt: bool) -> None:
    source, talk = SOURCES[family], CONVERSATIONS[name]
    found = rendered(source, talk, add_generation_prompt=prompt)
    if (family, name) in REFUSED:
        assert found is None
        return
    known = talk.with_empty_text() if family in PARTS else talk.with_empty_text().joined()
    want = reference(source, known, add_generation_prompt=prompt)
    assert want is not None and found == want


@pytest.mark.parametrize(
    ("family", "options"),
    [
        ("qwen3_think", {"enable_thinking": False}),
        ("qwen3_think", {"enable_thinking": True}),
        ("harmony_channels", {"reasoning_effort": "high"}),
        ("llama3_dates", {"date_string": "1 Jan 2020"}),
        ("granite_documents", {"thinking": True, "documents": [{"doc_id": 7, "title": "T", "text": "ä <b>"}]}),
        ("granite_documents", {"documents": [{"text": "one"}, {"text": "two"}]}),
    ],
)
def test_options_equal_transformers(family: str, options: Mapping[str, Any]) -> None:
    source, talk = SOURCES[family], CONVERSATIONS["turns"]
    want = reference(source, talk, add_generation_prompt=True, **options)
    assert want is not None and rendered(source, talk, add_generation_prompt=True, **options) == want
    assert options == {"enable_thinking": True} or want != reference(source, talk, add_generation_prompt=True)


@pytest.mark.parametrize("family", ["mistral_inst", "gemma_roles"])
def test_what_a_template_refuses_is_refused(family: str) -> None:
    talk = Conversation(messages=[{"role": "user", "content": "a"}, {"role": "user", "content": "b"}])
    assert reference(SOURCES[family], talk, add_generation_prompt=True) is None
    assert rendered(SOURCES[family], talk, add_generation_prompt=True) is None


# -- published templates -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Name -> source of the templates in llama.cpp's `models/templates`, from the source distribution that holds it."""
    path = tmp_path_factory.mktemp("sdist") / SDIST
    try:
        wheels.fetch(
            wheels.sources(""), project="llama-cpp-python", filename=SDIST, target=path, report=lambda done, total: None
        )
    except wheels.NotFetched as e:
        pytest.skip(f"{SDIST} cannot be fetched: {e}")
    return dict(_templates_in(path))


def _templates_in(path: Path) -> Iterator[tuple[str, str]]:
    with tarfile.open(path) as archive:
        for member in archive:
            if "/models/templates/" in member.name and member.name.endswith(".jinja"):
                file = archive.extractfile(member)
                assert file is not None
                yield Path(member.name).stem, file.read().decode()


@pytest.mark.full
@pytest.mark.timeout(1800)  # 77 MB may have to be fetched
def test_published_templates_equal_transformers(published: Mapping[str, str]) -> None:
    assert len(published) >= 70
    different, compared = list[str](), 0
    for template, source in published.items():
        shows_tools = _shows_tools(source)
        for name, talk in CONVERSATIONS.items():
            given = talk if shows_tools or talk.tools is None else dataclasses.replace(talk, tools=None)
            for prompt in (True, False):
                want = _expected(source, given, add_generation_prompt=prompt)
                compared += want is not None
                if rendered(source, given, add_generation_prompt=prompt) != want:
                    different.append(f"{template} {name} {prompt}")
                if given is not talk and rendered(source, talk, add_generation_prompt=prompt) is not None:
                    different.append(f"{template} {name} {prompt} takes tools that it does not show")
    assert not different
    assert compared > 850  # the rest is refused by both: some templates take no system message, or want tools


def _shows_tools(source: str) -> bool:
    """Whether transformers' prompt says anything about the tools that were given."""
    talk = CONVERSATIONS["tools"]
    return reference(source, talk, add_generation_prompt=True) != reference(
        source, dataclasses.replace(talk, tools=None), add_generation_prompt=True
    )


def _expected(source: str, talk: Conversation, *, add_generation_prompt: bool) -> str | None:
    """transformers' prompt of the messages as we hand them over.

    Text parts are joined where the template does not read them: where transformers refuses, loses text, or prints the
    list itself. The content of a message that only calls tools is empty text, which gives what null gives wherever
    transformers renders that.
    """
    given = reference(source, talk, add_generation_prompt=add_generation_prompt)
    empty = reference(source, talk.with_empty_text(), add_generation_prompt=add_generation_prompt)
    assert given in (None, empty)
    texts = [part["text"] for message in talk.messages for part in message["content"] or [] if isinstance(part, dict)]
    if texts and (empty is None or not all(text in empty for text in texts) or "'type'" in empty or '"type"' in empty):
        return reference(source, talk.joined(), add_generation_prompt=add_generation_prompt)
    return empty
