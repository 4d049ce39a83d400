"""A real model behind the server: what its clients get is what the Python API gives."""

from collections.abc import Iterator
from pathlib import Path

import openai
import pydantic
import pytest
from serving import Running, serving

from stretto import LLM, Sampling

pytestmark = pytest.mark.model
TALK = [{"role": "user", "content": "Name three colours."}]


@pytest.fixture(scope="module")
def real(smollm2_path: Path) -> Iterator[tuple[Running, str]]:
    llm = LLM(smollm2_path, context=1024, max_seqs=4)
    want = llm.chat(TALK, Sampling(temperature=0, max_tokens=24)).text
    with serving(llm, names=("smollm2", "small")) as one:
        yield one, want


def test_the_answer_is_that_of_the_python_api(real: tuple[Running, str]) -> None:
    server, want = real
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none") as client:
        how = {"messages": TALK, "temperature": 0, "max_tokens": 24}
        whole = client.chat.completions.create(model="smollm2", **how)  # type: ignore[call-overload]
        chunks = list(client.chat.completions.create(model="small", stream=True, **how))  # type: ignore[call-overload]
        assert whole.choices[0].message.content == want
        assert "".join(c.choices[0].delta.content or "" for c in chunks) == want
        two = client.chat.completions.create(model="small", n=2, seed=3, **{**how, "temperature": 1})  # type: ignore[call-overload]
        assert two.choices[0].message.content != two.choices[1].message.content
    ids = server.post("/tokenize", {"messages": TALK}).json()["tokens"]
    assert len(ids) == whole.usage.prompt_tokens
    prompt = server.post("/apply-template", {"messages": TALK}).json()["prompt"]
    assert server.post("/tokenize", {"content": prompt}).json()["tokens"] == ids
    assert server.post("/detokenize", {"tokens": ids}).json()["content"] == prompt
    server.settled()


def test_a_prompt_that_is_too_long_is_refused_as_such(real: tuple[Running, str]) -> None:
    server, _ = real
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none") as client:
        messages = [{"role": "user", "content": "word " * 1100}]
        with pytest.raises(openai.BadRequestError) as problem:
            client.chat.completions.create(model="small", messages=messages)  # type: ignore[call-overload]
    assert problem.value.code == "context_length_exceeded"
    server.settled()


class Colour(pydantic.BaseModel):
    name: str
    is_warm: bool


def test_objects_of_a_real_vocabulary(real: tuple[Running, str]) -> None:
    server, _ = real
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none") as client:
        how = {"messages": TALK, "temperature": 0, "max_tokens": 200, "response_format": Colour}
        parsed = client.chat.completions.parse(model="small", **how).choices[0].message.parsed
        assert isinstance(parsed, Colour) and parsed.name
        with client.chat.completions.stream(model="small", **how) as stream:
            assert stream.get_final_completion().choices[0].message.parsed == parsed
    server.settled()
