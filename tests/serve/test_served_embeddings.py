"""`/v1/embeddings`, `/api/embed` and `/api/embeddings`: the real clients get the vectors of `LLM.embed`."""

import base64
import math
import struct
from collections.abc import Iterator
from pathlib import Path

import httpx
import ollama
import openai
import pytest
from scripted import saying
from serving import Running, serving, tiny, told

from stretto import LLM

PATHS = {
    "/v1/embeddings": "input",
    "/api/embed": "input",
    "/api/embeddings": "prompt",
}
TEXTS = ["abc", "The quick brown fox", "é"]


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[Running]:
    """On native kernels: bits depend neither on companions nor on what was cached."""
    with serving(tiny(folder, dtype="bfloat16", backend="native")) as one:
        yield one


@pytest.fixture(scope="module")
def client(server: Running) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as one:
        yield one


@pytest.fixture(scope="module")
def twin(folder: Path) -> LLM:
    """The same model without a server."""
    return tiny(folder, dtype="bfloat16", backend="native")


def vectors(twin: LLM, texts: list[str], dimensions: int | None = None) -> list[list[float]]:
    """Rounded to fp32, as all answers are."""
    found: list[list[float]] = twin.embed(texts, dimensions=dimensions).numpy().tolist()
    return found


def test_openai_client(server: Running, twin: LLM, client: openai.OpenAI) -> None:
    """It asks for base64 by itself; plain numbers are the same."""
    want = vectors(twin, TEXTS)
    found = client.embeddings.create(model="toy", input=TEXTS)
    plain = client.embeddings.create(model="toy", input=TEXTS, encoding_format="float")
    assert [one.index for one in found.data] == [0, 1, 2]
    assert [list(one.embedding) for one in found.data] == [one.embedding for one in plain.data] == want
    count = sum(len(twin.embedder.encode(text)) for text in TEXTS)
    assert found.usage.prompt_tokens == found.usage.total_tokens == count
    ids = [twin.tokenizer.encode(text) for text in TEXTS]
    by_ids = client.embeddings.create(model="toy", input=ids, encoding_format="float")
    assert [one.embedding for one in by_ids.data] == [one.embedding for one in plain.data]
    one = client.embeddings.create(model="toy", input=ids[1], encoding_format="float")
    assert one.data[0].embedding == plain.data[1].embedding


def test_base64_is_fp32_little_endian(server: Running, twin: LLM) -> None:
    body = {"input": "abc", "encoding_format": "base64", "dimensions": 5}
    packed = base64.b64decode(server.post("/v1/embeddings", body).json()["data"][0]["embedding"])
    first = vectors(twin, ["abc"])[0][:5]
    length = math.sqrt(sum(x * x for x in first))
    assert struct.unpack("<5f", packed) == pytest.approx([x / length for x in first], abs=1e-7)


def test_ollama_client(server: Running, twin: LLM) -> None:
    client, want = ollama.Client(host=server.url), vectors(twin, TEXTS)
    found = client.embed("toy:latest", TEXTS, options={"num_ctx": 64})
    assert [list(one) for one in found.embeddings] == want
    assert found.prompt_eval_count == sum(len(twin.embedder.encode(text)) for text in TEXTS)
    assert list(client.embed("toy", "abc", dimensions=5).embeddings[0]) == vectors(twin, ["abc"], 5)[0]
    assert list(client.embeddings("toy", "abc").embedding) == want[0]


@pytest.mark.parametrize("path", PATHS)
def test_what_cannot_be_embedded(server: Running, path: str) -> None:
    def refused(value: object, **fields: object) -> str:
        response = server.post(path, {"model": "toy", PATHS[path]: value, **fields})
        assert response.status_code == 400 and response.headers["x-should-retry"] == "false"
        return told(path, response)[1]

    assert "the context of this model is 128" in refused("x" * 200)
    refused("")
    refused(None)
    if PATHS[path] == "input":
        refused([])
        refused(["abc", ""])
        assert "at most 1,024" in refused(["a"] * 1025)
        for dimensions in (0, -1, 10**6, 1.5, True):
            refused("abc", dimensions=dimensions)
    missing = server.post(path, {"model": "other", PATHS[path]: "abc"})
    assert missing.status_code == 404


def test_openai_bodies(server: Running) -> None:
    response = server.post("/v1/embeddings", {"input": "x" * 200})
    assert response.json()["error"]["code"] == "context_length_exceeded"
    assert response.json()["error"]["param"] == "input"
    for bad in ([1, "a"], [[1], "a"], [-1], [10**6], [[]], [["a"]], {"a": 1}, 3):
        assert server.post("/v1/embeddings", {"input": bad}).status_code == 400, bad
    assert server.post("/v1/embeddings", {"input": "a", "encoding_format": "int8"}).status_code == 400
    assert server.post("/v1/embeddings", {"input": "a", "dimensions": 10**6}).json()["error"]["param"] == "dimensions"


def test_many_at_once_are_as_one_by_one(server: Running, twin: LLM) -> None:
    """More than the engine runs at once, beside a text that is written."""
    texts = [f"text {i} " * (i % 5 + 1) for i in range(60)]
    want = server.chat()["choices"][0]["message"]["content"]
    alone = [vectors(twin, [text])[0] for text in texts]
    found = server.post("/v1/embeddings", {"input": texts}).json()["data"]
    assert [one["embedding"] for one in found] == alone
    assert server.chat()["choices"][0]["message"]["content"] == want


def test_a_client_that_leaves_is_served_no_longer(tmp_path: Path) -> None:
    llm = saying(tmp_path, "a")
    with serving(llm) as one:
        llm.scripted.gate.close()
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(f"{one.url}/v1/embeddings", json={"input": ["a", "b"]}, timeout=0.5)
        llm.scripted.gate.let(1)
        llm.scripted.gate.open()
        one.settled()
        assert len(llm.scripted.added) == 2


def test_metrics_count_it(server: Running) -> None:
    before = server.http.get("/metrics").text
    assert server.post("/v1/embeddings", {"input": "abc"}).status_code == 200
    line = 'stretto:request_success_total{finished_reason="embedded",model_name="toy"}'
    count = [float(x.rsplit(" ", 1)[1]) for x in server.http.get("/metrics").text.splitlines() if x.startswith(line)]
    old = [float(x.rsplit(" ", 1)[1]) for x in before.splitlines() if x.startswith(line)]
    assert count == [(old[0] if old else 0) + 1]
