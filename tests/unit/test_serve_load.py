"""The load benchmark, as far as nothing is measured: what is sent, what is counted, and when a search ends."""

import asyncio
import json
import random
from collections.abc import Callable, Coroutine
from statistics import median
from typing import Any

import pytest
from peers.load import BETWEEN_S, FIRST_S, Asked, Mixed, Served, chats, highest, is_good, open_loop
from peers.sse import Answer, ServerError, complete

Respond = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Coroutine[Any, Any, None]]


def decode(ids: object) -> str:
    return str(ids)


@pytest.mark.parametrize("limit", [0.21, 0.9, 1.5, 2.2, 7.0, 40.0])
def test_the_highest_rate_is_found(limit: float) -> None:
    asked: list[float] = []

    def probe(rate: float) -> bool:
        asked.append(rate)
        return rate <= limit

    found = highest(probe, 1.5, 2.0, 12)
    assert found <= limit < found * 1.1 and found in asked and len(asked) == 12
    near = highest(probe, limit * 1.05, 1.3, 3)  # a later round
    assert near <= limit < near * 1.3


def test_no_rate_may_pass() -> None:
    assert highest(lambda rate: False, 1.0, 2.0, 4) == 0.0


def test_everyone_gets_the_same_requests() -> None:
    ids = list(range(5000))
    first, again, other = (chats(ids, decode, 2000, seed) for seed in (1, 1, 2))
    assert first == again != other
    lengths = [one.prompt.count(",") + 1 for one in first]
    assert min(lengths) >= 4 and max(lengths) == 1024 and 145 < median(lengths) < 178
    assert min(one.new for one in first) >= 4 and max(one.new for one in first) == 512
    assert 118 < median(one.new for one in first) < 143
    assert first[0].at == 0.0 and first[-1].at / 2000 == pytest.approx(1.0, rel=0.1)  # on average one per unit of time


def served_by(respond: Respond, use: Callable[[int], Coroutine[Any, Any, Any]]) -> Any:
    """What `use` of a port returns, on which every connection is answered by `respond`."""

    async def main() -> Any:
        server = await asyncio.start_server(respond, "127.0.0.1", 0)
        try:
            return await use(server.sockets[0].getsockname()[1])
        finally:
            server.close()

    return asyncio.run(main())


def answering(texts: list[str], *, usage: int | None = None, cut: bool = False, status: str = "200 OK") -> Respond:
    """A stream of one event per text, in chunks whose bounds are anywhere. cut: it breaks off."""

    async def respond(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        length = next(int(line.split(b":")[1]) for line in head.split(b"\r\n") if line.lower().startswith(b"content-l"))
        body = json.loads(await reader.readexactly(length))
        writer.write(f"HTTP/1.1 {status}\r\nTransfer-Encoding: chunked\r\n\r\n".encode())
        count = {"prompt_tokens": 7, "completion_tokens": body["max_tokens"] if usage is None else usage}
        events: list[Any] = [{"choices": [{"text": text}]} for text in texts] + [{"choices": [], "usage": count}]
        stream = b": a comment\n\n" + b"".join(b"data: " + json.dumps(e).encode() + b"\n\n" for e in events)
        stream += b"data: [DONE]\n\n"
        rng = random.Random(len(texts))
        while stream and not (cut and len(stream) < 40):
            piece, stream = stream[: (n := rng.randint(1, 23))], stream[n:]
            writer.write(f"{len(piece):x}\r\n".encode() + piece + b"\r\n")
            await writer.drain()
        writer.close()

    return respond


def test_a_stream_is_read_as_it_was_sent() -> None:
    texts = ["wör", "ld", "", "\n\n", "data: x"]
    answer = served_by(answering(texts), lambda port: complete(port, "a", 9))
    assert (answer.text, answer.prompt, answer.output) == ("".join(texts), 7, 9)
    assert len(answer.times) == 4 and answer.times == sorted(answer.times) and answer.first_s > 0  # "" is no token


def test_who_leaves_stops_reading() -> None:
    answer = served_by(answering(["a", "b", "c"]), lambda port: complete(port, "a", 3, stop_after=2))
    assert answer.text == "ab" and answer.output == 0


@pytest.mark.parametrize(
    ("respond", "message"),
    [
        (answering(["a"], usage=3), "3 tokens, and not 9"),
        (answering(["a", "b"], cut=True), "IncompleteReadError|ValueError|0 tokens"),
        (answering([], status="503 Service Unavailable"), "503"),
    ],
    ids=["too few", "cut off", "refused"],
)
def test_an_answer_that_is_none_counts_as_failed(respond: Respond, message: str) -> None:
    with pytest.raises(ServerError, match=message):
        served_by(respond, lambda port: complete(port, "a", 9))


def test_a_rate_is_given_up_once_too_many_are_bad(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("peers.load.FIRST_S", 60.0)  # however slow this machine is
    asked = [Asked(float(i), "a", 5) for i in range(10)]
    never = [Asked(1e9, "a", 5)] * 5
    served = served_by(answering(["a"], usage=0), lambda port: open_loop(port, asked + never, 100.0, most_bad=3))
    assert 3 < served.num_bad <= 10 and not served.num_good
    served = served_by(answering(["a"]), lambda port: open_loop(port, asked, 100.0, most_bad=3))
    assert served.num_good == 10 and served.num_bad == 0


def test_what_is_good_is_within_both_times() -> None:
    def answer(first: float, between: float) -> Answer:
        return Answer(10.0, [10.0 + first, 10.0 + first + between * 9], 5, 10, "a")

    assert is_good(answer(0.9 * FIRST_S, 0.9 * BETWEEN_S))
    assert not is_good(answer(1.1 * FIRST_S, 0.9 * BETWEEN_S))
    assert not is_good(answer(0.9 * FIRST_S, 1.1 * BETWEEN_S))


def test_the_gap_that_a_share_does_not_exceed() -> None:
    mixed = Mixed([float(i) for i in range(1, 101)][::-1], 0.0, Served())
    assert (mixed.gap(0.99), mixed.gap(0.5), mixed.gap(1.0)) == (99.0, 50.0, 100.0)
