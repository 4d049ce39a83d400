"""What is sent to a server, and when: the same for everyone, from seeds.

Open loop: requests come at their times, whether or not earlier ones are answered (Poisson arrivals). Lengths are those
of a mixture of chats: prompts lognormal with a median of 161 tokens, sigma 1.0, between 4 and 1,024; answers with a
median of 130, sigma 0.9, between 4 and 512.
"""

import asyncio
import math
import random
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from statistics import median

from peers.sse import Answer, ServerError, complete

FIRST_S, BETWEEN_S, SHARE = 1.0, 0.050, 0.9  # a request is good within both; a rate, if so many are
FIRST_RATE = 1.5  # requests per second, the first that is tried

Decode = Callable[[Sequence[int]], str]


@dataclass(frozen=True, slots=True)
class Asked:
    """A request. at: in units of the mean time between two arrivals, from the first one on."""

    at: float
    prompt: str
    new: int


@dataclass(slots=True)
class Served:
    """What became of the requests of one run. failures: what those that failed said; late: that were given up, since
    they could not be good any more."""

    answers: list[Answer] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    late: int = 0
    seconds: float = 0.0

    @property
    def num_good(self) -> int:
        return sum(is_good(one) for one in self.answers)

    @property
    def num_bad(self) -> int:
        return len(self.answers) + len(self.failures) + self.late - self.num_good


def is_good(answer: Answer) -> bool:
    """Whether it met both times."""
    return answer.first_s <= FIRST_S and answer.between_s <= BETWEEN_S


def chats(ids: Sequence[int], decode: Decode, count: int, seed: int) -> list[Asked]:
    """Requests whose prompts are pieces of a text, each of them from another place: nothing is shared on purpose."""
    rng, at, found = random.Random(seed), 0.0, []
    for _ in range(count):
        length, new = clipped(rng, 161, 1.0, 1024), clipped(rng, 130, 0.9, 512)
        start = rng.randrange(len(ids))
        found.append(Asked(at, f"{rng.randrange(10**6)} " + decode(around(ids, start, length)), new))
        at += rng.expovariate(1.0)
    return found


def clipped(rng: random.Random, middle: float, sigma: float, most: int) -> int:
    """A length: lognormal, at least 4."""
    return min(max(4, round(rng.lognormvariate(math.log(middle), sigma))), most)


def around(ids: Sequence[int], start: int, length: int) -> list[int]:
    """`length` ids from a place on, beginning again at the end."""
    return [ids[(start + i) % len(ids)] for i in range(length)]


async def open_loop(port: int, asked: Sequence[Asked], rate: float, most_bad: int | None = None) -> Served:
    """Send them at `rate` per second. A client leaves once its answer cannot be good any more.

    most_bad: end as soon as more are bad: the verdict is known then.
    """
    served, began = Served(), time.perf_counter()
    too_bad = asyncio.Event()

    async def one(request: Asked) -> None:
        await asyncio.sleep(request.at / rate - (time.perf_counter() - began))
        try:
            async with asyncio.timeout(FIRST_S + BETWEEN_S * (request.new - 1)):
                await attempt(served, complete(port, request.prompt, request.new))
        except TimeoutError:
            served.late += 1
        if most_bad is not None and served.num_bad > most_bad:
            too_bad.set()

    verdict = asyncio.ensure_future(too_bad.wait())
    whole = asyncio.gather(*(one(request) for request in asked))
    try:
        await asyncio.wait([whole, verdict], return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in (whole, verdict):
            task.cancel()
        await asyncio.gather(whole, verdict, return_exceptions=True)
    served.seconds = time.perf_counter() - began
    return served


async def attempt(served: Served, asking: Awaitable[Answer]) -> Answer | None:
    """The answer, if there is one; what happened goes to `served`."""
    try:
        answer = await asking
    except ServerError as error:
        served.failures.append(str(error))
        return None
    served.answers.append(answer)
    return answer


def highest(probe: Callable[[float], bool], start: float, step: float, probes: int) -> float:
    """The highest rate that passed, 0 if none did: by factors of `step` from `start` until one passes and one does not,
    then by bisection (of the logarithm)."""
    low, high, rate = 0.0, math.inf, start
    for _ in range(probes):
        if probe(rate):
            low = max(low, rate)
        else:
            high = min(high, rate)
        rate = low * step if high == math.inf else high / step if not low else math.sqrt(low * high)
    return low


def goodput(
    port: int, ids: Sequence[int], decode: Decode, size: "Size", seed: int, before: float
) -> tuple[float, Served]:
    """The highest rate at which `SHARE` of the requests are good; and all that was served on the way.

    before: what it was in earlier rounds, from which smaller steps lead to what it is now; 0 = not known.
    """
    all_served = Served()

    def probe(rate: float) -> bool:
        count = max(size.fewest, round(rate * size.seconds))
        allowed = count - math.ceil(SHARE * count)
        served = asyncio.run(open_loop(port, chats(ids, decode, count, seed), rate, allowed))
        all_served.answers += served.answers
        all_served.failures += served.failures
        return served.num_bad <= allowed

    start, step, probes = (before, 1.3, size.probes - 1) if before else (FIRST_RATE, 2.0, size.probes)
    return highest(probe, start, step, probes), all_served


@dataclass(frozen=True, slots=True, kw_only=True)
class Size:
    """How much is sent. fewest, seconds, probes: of the search for goodput, requests and seconds of each probe; users,
    turns: of the conversations; streams, prompts, gap_s: texts that are written while so many long prompts come."""

    fewest: int
    seconds: float
    probes: int
    users: int
    turns: int
    streams: int
    prompts: int
    gap_s: float


LONG = 2000  # tokens of a prompt that comes while others write
SYSTEM, QUESTION, REPLY = 600, 40, 48  # tokens: what all conversations begin with, a turn, its answer


async def conversations(port: int, ids: Sequence[int], decode: Decode, size: Size, seed: int) -> Served:
    """Users who begin alike and talk at once; each waits for an answer, thinks for a moment and asks again."""
    served, began, rng = Served(), time.perf_counter(), random.Random(seed)
    system = f"{seed} " + decode(around(ids, rng.randrange(len(ids)), SYSTEM))

    async def user(own: random.Random) -> None:
        text = f"<|im_start|>system\n{system}<|im_end|>\n"
        for _ in range(size.turns):
            question = decode(around(ids, own.randrange(len(ids)), QUESTION))
            text += f"<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n"
            answer = await attempt(served, complete(port, text, REPLY))
            if answer is None:
                return
            text += f"{answer.text}<|im_end|>\n"
            await asyncio.sleep(own.expovariate(4.0))

    await asyncio.gather(*(user(random.Random(rng.randrange(2**32))) for _ in range(size.users)))
    served.seconds = time.perf_counter() - began
    return served


@dataclass(frozen=True, slots=True)
class Mixed:
    """Texts that were written while prompts came. gaps_s: between their events; tokens_per_s: of prompts and texts."""

    gaps_s: list[float]
    tokens_per_s: float
    served: Served

    def gap(self, share: float) -> float:
        """The one that so many do not exceed."""
        ordered = sorted(self.gaps_s)
        return ordered[min(len(ordered) - 1, math.ceil(share * len(ordered)) - 1)]


async def writing_beside_prompts(port: int, ids: Sequence[int], decode: Decode, size: Size, seed: int) -> Mixed:
    """Streams that write without a pause, and prompts of `LONG` tokens, one every `gap_s` seconds in the mean.

    Only gaps between the first and the last arrival count; tokens count over the whole run, which ends when the last
    prompt has been read.
    """
    rng, served, began = random.Random(seed), Served(), time.perf_counter()
    gaps, written, done = list[float](), 0, asyncio.Event()
    arrivals, at = list[float](), 1.0
    for _ in range(size.prompts):
        arrivals.append(at)
        at += rng.expovariate(1 / size.gap_s)

    async def write(own: random.Random) -> None:
        nonlocal written
        while not done.is_set():
            prompt = f"{own.randrange(10**6)} " + decode(around(ids, own.randrange(len(ids)), 64))
            answer = await attempt(served, complete(port, prompt, 256))
            if answer is None:
                return
            pairs = zip(answer.times, answer.times[1:], strict=False)
            gaps.extend(b - a for a, b in pairs if began + arrivals[0] <= b and a <= ended)
            within = sum(t <= ended for t in answer.times) / len(answer.times)
            written += round(answer.output * within) + (answer.prompt if answer.times[0] <= ended else 0)

    async def read(number: int) -> Answer | None:
        await asyncio.sleep(arrivals[number] - (time.perf_counter() - began))
        prompt = f"{seed}, {number}: " + decode(around(ids, rng.randrange(len(ids)), LONG - 8))
        return await attempt(served, complete(port, prompt, 1))

    ended = math.inf
    writers = [asyncio.ensure_future(write(random.Random(rng.randrange(2**32)))) for _ in range(size.streams)]
    try:
        readers = await asyncio.gather(*(read(number) for number in range(size.prompts)))
        ended = time.perf_counter()
        done.set()
        await asyncio.gather(*writers)
    finally:
        for writer in writers:
            writer.cancel()
        await asyncio.gather(*writers, return_exceptions=True)
    tokens = written + sum(answer.prompt for answer in readers if answer is not None)
    return Mixed(gaps, tokens / (ended - began), served)


def middle_first_ms(served: Served) -> float:
    """Median time to the first token."""
    return 1e3 * median(one.first_s for one in served.answers)
