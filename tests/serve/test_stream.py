"""What stands in a stream, byte by byte."""

import json
from typing import Any

import openai
import pytest
from scripted import EOS, ScriptedLLM
from serving import CHAT, COMPLETIONS, HELLO, Running, joined, parsed, serving

from stretto.serve import stream as stream_module


@pytest.mark.parametrize("stop", [None, ["time"], ["ö"], ["was", "zzz"], ["bytes."]])
@pytest.mark.parametrize("max_tokens", [1, 7, 33, 34, 100])
def test_joined_deltas_are_the_whole_text(scripted: Running, stop: list[str] | None, max_tokens: int) -> None:
    """Also where the last token is half of a letter: byte 33 of the text is the first one of `ö`."""
    how: dict[str, Any] = {"max_tokens": max_tokens, "stop": stop, "stream_options": None}
    whole, events = scripted.chat(**how)["choices"][0], scripted.events(**how)
    assert joined(events) == whole["message"]["content"]
    assert events[-1] == "[DONE]" and events[-2]["choices"][0]["finish_reason"] == whole["finish_reason"]
    text = scripted.post(COMPLETIONS, {"prompt": "x", **how}).json()["choices"][0]
    assert joined(scripted.events(COMPLETIONS, prompt="x", **how)) == text["text"] == whole["message"]["content"]


def test_a_letter_that_is_cut_off_ends_the_text_visibly(scripted: Running, llm: ScriptedLLM) -> None:
    ids = [*llm.ids("a"), *llm.ids("€")[:2]]
    script, llm.scripted.say = llm.scripted.say, lambda request: ids
    try:
        for stop in (None, ["zz"]):
            assert scripted.chat(max_tokens=3, stop=stop)["choices"][0]["message"]["content"] == "a\ufffd"
            assert joined(scripted.events(max_tokens=3, stop=stop)) == "a\ufffd"
    finally:
        llm.scripted.say = script


def test_the_bytes_of_a_stream(scripted: Running) -> None:
    body = json.dumps({"messages": HELLO, "max_tokens": 3, "stream": True}).encode()
    request = (
        b"POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\ncontent-length: "
        + str(len(body)).encode()
        + b"\r\n\r\n"
        + body
    )
    head, _, rest = scripted.raw(request).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200") and b"content-type: text/event-stream" in head
    assert b"x-request-id: " in head and b"server:" not in head.lower()
    stream = b""
    while rest:
        size, _, rest = rest.partition(b"\r\n")
        stream, rest = stream + rest[: int(size, 16)], rest[int(size, 16) + 2 :]
    events = parsed(stream)
    assert events[-1] == "[DONE]" and stream.endswith(b"data: [DONE]\n\n")
    assert [e["choices"][0]["delta"] for e in events[:-1]] == [
        {"role": "assistant", "content": ""}, {"content": "O"}, {"content": "n"}, {"content": "c"}, {},
    ]  # fmt: skip
    assert b"\nid:" not in stream and b"retry:" not in stream


def test_silence_is_filled_with_comments_that_the_real_client_reads(
    scripted: Running, llm: ScriptedLLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream_module, "QUIET_SECONDS", 0.02)
    llm.scripted.gate.close()
    try:
        with scripted.http.stream("POST", CHAT, json={"messages": HELLO, "max_tokens": 3, "stream": True}) as response:
            blocks = response.iter_bytes()
            assert next(blocks) == b": ping\n\n"
            llm.scripted.gate.open()
            assert parsed(b"".join(blocks))[-1] == "[DONE]"
        llm.scripted.gate.close()
        with openai.OpenAI(base_url=f"{scripted.url}/v1", api_key="x", max_retries=0) as client:
            chunks = client.chat.completions.create(messages=HELLO, model="toy", max_tokens=3, stream=True)  # type: ignore[call-overload]
            llm.scripted.gate.open()
            assert "".join(c.choices[0].delta.content or "" for c in chunks) == "Onc"
    finally:
        llm.scripted.gate.open()


def test_an_error_after_the_start_is_an_event_and_the_end(scripted: Running, llm: ScriptedLLM) -> None:
    llm.scripted.failing = lambda request: len(request.output) == 3
    try:
        events = scripted.events()
        assert joined(events[:-1]) == "Onc" and set(events[-1]) == {"error"}
        error = events[-1]["error"]
        assert error["type"] == "server_error" and "0x" not in json.dumps(error) and "NaN" not in json.dumps(error)
        with (
            openai.OpenAI(base_url=f"{scripted.url}/v1", api_key="x", max_retries=0) as client,
            pytest.raises(openai.APIError, match="The server failed"),
        ):
            list(client.chat.completions.create(messages=HELLO, model="toy", stream=True))  # type: ignore[call-overload]
        llm.scripted.failing = lambda request: True
        for stream in (True, False):  # before the first token it is an ordinary answer
            response = scripted.post(CHAT, {"messages": HELLO, "stream": stream})
            assert response.status_code == 500 and "0x" not in response.text and "NaN" not in response.text
            assert response.json()["error"]["code"] == response.headers["x-request-id"]
    finally:
        llm.scripted.failing = lambda request: False
    assert scripted.chat()["choices"][0]["finish_reason"] == "length"


def test_several_answers_are_streamed_side_by_side(scripted: Running, llm: ScriptedLLM) -> None:
    texts = ["one", "two", "three"]
    script = llm.scripted.say
    llm.scripted.say = lambda request: llm.ids(texts[request.noise.child])
    try:
        options = {"include_usage": True}
        events = scripted.events(n=3, max_tokens=9, stream_options=options, temperature=1)
        assert [joined(events, index=i) for i in range(3)] == texts
        roles = [c["index"] for e in events[:-1] for c in e["choices"] if c["delta"].get("role")]
        assert sorted(roles) == [0, 1, 2]
        assert events[-2]["choices"] == [] and events[-2]["usage"]["completion_tokens"] == 4 + 4 + 6
        assert all(e["usage"] is None for e in events[:-2])
        seeds = [c["stretto"]["seed"] for c in scripted.chat(n=3, max_tokens=9, temperature=1)["choices"]]
        assert len(set(seeds)) == 1, "one seed, and a number for each answer"
        batch = scripted.events(COMPLETIONS, prompt=["a", "b"], n=2, max_tokens=9, stream_options=options)
        assert [joined(batch, index=i) for i in range(4)] == ["one", "two"] * 2
        assert batch[-2]["usage"]["prompt_tokens"] == 2, "each prompt counts once"
    finally:
        llm.scripted.say = script


def test_what_may_be_asked_for_beside_the_text(scripted: Running) -> None:
    whole = scripted.chat(logprobs=True, top_logprobs=2, return_token_ids=True, echo_params=True, seed=5, max_tokens=4)
    choice = whole["choices"][0]
    events = scripted.events(logprobs=True, top_logprobs=2, return_token_ids=True, max_tokens=4)
    pieces = [e["choices"][0] for e in events[:-1]]
    streamed = [entry for p in pieces if p["logprobs"] for entry in p["logprobs"]["content"]]
    assert streamed == choice["logprobs"]["content"] and [e["token"] for e in streamed] == list("Once")
    assert [len(e["top_logprobs"]) for e in streamed] == [2] * 4 and streamed[0]["bytes"] == [79]
    assert [i for p in pieces for i in p.get("token_ids", [])] == choice["token_ids"]
    assert events[0]["prompt_token_ids"] == whole["prompt_token_ids"]
    assert whole["params"]["seed"] == 5 == choice["stretto"]["seed"] and whole["params"]["top_p"] == 1.0
    assert whole["timings"]["predicted_n"] == 4 == whole["usage"]["completion_tokens"]
    assert events[-2]["timings"]["prompt_n"] == whole["timings"]["prompt_n"] == whole["usage"]["prompt_tokens"]


def test_log_probabilities_of_texts_that_are_continued(scripted: Running, llm: ScriptedLLM) -> None:
    how = {"prompt": "ab", "max_tokens": 4, "logprobs": 2}
    found = scripted.post(COMPLETIONS, how).json()["choices"][0]["logprobs"]
    assert found["tokens"] == list("Once") and found["text_offset"] == [0, 1, 2, 3]
    assert found["token_logprobs"] == [-0.5] * 4 and [len(top) for top in found["top_logprobs"]] == [2] * 4
    pieces = [e["choices"][0]["logprobs"] for e in scripted.events(COMPLETIONS, **how)[:-1]]
    for name, values in found.items():
        assert [value for piece in pieces for value in piece[name]] == values
    echoed = scripted.post(COMPLETIONS, {"prompt": "ab", "max_tokens": 4, "echo": True}).json()["choices"][0]
    assert echoed["text"] == "abOnce"
    script, llm.scripted.say = llm.scripted.say, lambda request: [*llm.ids("é"), EOS]
    try:
        both = scripted.post(COMPLETIONS, {**how, "skip_special_tokens": False}).json()["choices"][0]["logprobs"]
    finally:
        llm.scripted.say = script
    assert both["tokens"] == ["bytes:\\xc3", "bytes:\\xa9", "</s>"], "halves of a letter have names of their own"


def test_special_tokens_stand_in_the_text_on_request(tmp_path_factory: pytest.TempPathFactory) -> None:
    from scripted import BOS, ScriptedLLM

    says = ScriptedLLM(tmp_path_factory.mktemp("special"), lambda request: [66, BOS, 67])
    with serving(says) as one:
        assert one.chat()["choices"][0]["message"]["content"] == "cd"
        assert one.chat(skip_special_tokens=False)["choices"][0]["message"]["content"] == "c<s>d"
