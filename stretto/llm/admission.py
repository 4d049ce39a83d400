"""`Admission`: how readers of any thread hand requests to the one thread that touches an engine.

A reader takes a place (`open`). Its prompt is encoded in a thread of its own, then a command adds its request to the
engine. `drop` may come at any moment and any number of times: before the command, it keeps the request out; after it, a
second command follows the first. So no request stays that nobody waits for, and a place is given back by whoever held
the request last.
"""

import asyncio
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from queue import SimpleQueue
from typing import Any, TypeVar

from stretto.core.errors import BusyError, RunError, UserError
from stretto.llm.queued import Pace, QueuedTokens
from stretto.llm.results import Chunk, Stream
from stretto.llm.submission import Submission
from stretto.llm.watch import Watch

T = TypeVar("T")

_ENCODERS = 4  # threads for templates and tokenizers: one endless template does not stop the others


class Closed(UserError):
    """The `AsyncLLM` was closed."""


class Reader:
    """Who waits for the chunks of one request, in which event loop.

    number, inbox: of several that are read together, which one it is and where the chunks of all arrive.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        number: int = 0,
        inbox: "asyncio.Queue[tuple[int, Chunk | BaseException]] | None" = None,
    ) -> None:
        self._loop, self._number = loop, number
        self._arrived = asyncio.Queue[tuple[int, Chunk | BaseException]]() if inbox is None else inbox
        self.is_submitted = self.is_dropped = False
        self.stream: Stream | None = None  # once it is in the engine

    def deliver(self, item: Chunk | BaseException) -> bool:
        """Hand `item` over, from any thread; whether there is a loop to take it."""
        try:
            self._loop.call_soon_threadsafe(self._arrived.put_nowait, (self._number, item))
        except RuntimeError:  # the loop is closed
            return False
        return True

    async def next(self) -> Chunk:
        """The next chunk; raises what was delivered in place of one."""
        _, item = await self._arrived.get()
        if isinstance(item, BaseException):
            raise item
        return item


@dataclass(frozen=True, slots=True)
class Add:
    """A command: run the request of `reader`."""

    reader: Reader
    submission: Submission


@dataclass(frozen=True, slots=True)
class Drop:
    """A command: end the request of `reader`, if there is one."""

    reader: Reader


@dataclass(frozen=True, slots=True)
class Ask:
    """A command: answer a question about the engine."""

    question: Callable[[Watch], Any]
    answer: "Future[Any]"

    def fail(self, problem: BaseException) -> None:
        """There is no answer."""
        if self.answer.set_running_or_notify_cancel():
            self.answer.set_exception(problem)

    def ask(self, watch: Watch) -> None:
        """Answer; what the question raises is the answer, too."""
        if self.answer.set_running_or_notify_cancel():
            try:
                self.answer.set_result(self.question(watch))
            except Exception as problem:
                self.answer.set_exception(problem)


@dataclass(frozen=True, slots=True)
class Stop:
    """A command: end everything."""


def check_bounds(max_waiting: int, max_queued_tokens: int | None) -> None:
    """Raise UserError for bounds that would let nobody in."""
    if max_waiting < 1:
        raise UserError(f"max_waiting is {max_waiting}", why="at least one request must have a place")
    if max_queued_tokens is not None and max_queued_tokens < 1:
        raise UserError(f"max_queued_tokens is {max_queued_tokens}", why="it is a number of tokens, or None")


class Admission:
    """Places for `max_waiting` requests, and the commands that follow from them.

    clock: seconds. max_queued_tokens: in the prompts of those that wait (`QueuedTokens`). inbox: commands, in the order
    in which they are to be obeyed; whoever obeys them says whose prompt is read (`start`), gives places back
    (`give_back`) and says when all is over (`end`).
    """

    def __init__(self, max_waiting: int, clock: Callable[[], float], *, max_queued_tokens: int | None = None) -> None:
        self.max_waiting, self._clock = max_waiting, clock
        self.inbox: SimpleQueue[Add | Drop | Ask | Stop] = SimpleQueue()
        self._lock = threading.Lock()  # over places, and over what may still be submitted
        self._readers: set[Reader] = set()  # those that hold a place
        self._ends = Pace()  # of places that come free, others being taken
        self._queued = QueuedTokens(max_queued_tokens)
        self._is_over = False
        self._problem: BaseException | None = None  # why all is over, if that is a fault
        # Encoding needs no lock: a tokenizer's Rust object and a compiled template never change, every rendering has an
        # account of its own, and what `Tokenizer` remembers can at worst be computed twice, with the same result.
        self._encoders = ThreadPoolExecutor(_ENCODERS, thread_name_prefix="stretto-encode")

    @property
    def num_requests(self) -> int:
        """Places that are taken: prompts being encoded, requests queued or running."""
        return len(self._readers)

    def open(self, reader: Reader, encode: Callable[[], Submission]) -> None:
        """Take a place for `reader` and start encoding. Raises BusyError if there is none, UserError if all is over."""
        with self._lock:
            self._check_places(1)
            self._encoders.submit(self._encode, reader, encode)
            self._readers.add(reader)

    def submit(self, readers: Sequence[Reader], submissions: Sequence[Submission]) -> None:
        """Take a place for each reader, or for none, for prompts that are encoded. Raises as `open` does."""
        with self._lock:
            self._check_places(len(readers))
            self._enqueue(readers, submissions)
            self._readers.update(readers)

    def offload(self, work: Callable[[], T]) -> "Future[T]":
        """Run `work` in the threads of templates and tokenizers, without taking a place."""
        with self._lock:
            if self._is_over:
                raise self.refusal()
            return self._encoders.submit(work)

    def ask(self, question: Callable[[Watch], T]) -> "Future[T]":
        """Have a question answered by the engine's thread, between two steps."""
        answer: Future[T] = Future()
        with self._lock:
            if self._is_over:
                raise self.refusal()
            self.inbox.put(Ask(question, answer))
        return answer

    def drop(self, reader: Reader) -> None:
        """Nobody reads any more: its request ends, within one step if it runs."""
        with self._lock:
            reader.is_dropped = True
            if reader.is_submitted and reader in self._readers:
                self.inbox.put(Drop(reader))

    def close(self) -> None:
        """Take nothing more, and end what there is."""
        with self._lock:
            self._is_over = True
        self.inbox.put(Stop())

    def start(self, reader: Reader) -> None:
        """The prompt of its request is being read."""
        with self._lock:
            self._queued.start(reader, self._clock())

    def give_back(self, reader: Reader) -> None:
        """The place of a reader whose request is nowhere any more."""
        with self._lock:
            self._queued.drop(reader)
            if reader in self._readers:
                self._readers.remove(reader)
                self._ends.add(self._clock())
            if not self._readers:
                self._ends.clear()

    def end(self, problem: BaseException | None) -> list[Reader]:
        """Nobody obeys any more, and why, if that is a fault. The readers that still hold a place."""
        with self._lock:
            self._is_over, self._problem = True, problem
            left = list(self._readers)
        self._encoders.shutdown(wait=False)  # what is queued there sees that all is over
        return left

    def refusal(self) -> UserError:
        """What readers hear once all is over."""
        if self._problem is None:
            return Closed("this AsyncLLM is closed", try_="make a new one")
        why = f"{type(self._problem).__name__}: {self._problem}"
        error = RunError("the engine thread has ended", why=why, try_="make a new AsyncLLM")
        error.__cause__ = self._problem
        return error

    def _check_places(self, wanted: int) -> None:
        if self._is_over:
            raise self.refusal()
        if wanted > self.max_waiting:
            raise UserError(f"{wanted:,} requests at once", why=f"max_waiting is {self.max_waiting:,}", try_="fewer")
        if len(self._readers) + wanted > self.max_waiting:
            seconds = self._ends.seconds()
            raise BusyError(
                f"{len(self._readers):,} requests are queued or running",
                why=f"max_waiting is {self.max_waiting:,}",
                try_=f"again in {seconds:.1f} s",
                retry_after=seconds,
            )

    def _enqueue(self, readers: Sequence[Reader], submissions: Sequence[Submission]) -> None:
        """Commands that add these requests, for all or none. Raises BusyError if their prompts are too long to wait."""
        self._queued.check([len(one.ids) for one in submissions])
        for reader, submission in zip(readers, submissions, strict=True):
            reader.is_submitted = True
            self._queued.add(reader, len(submission.ids))
            self.inbox.put(Add(reader, submission))

    def _encode(self, reader: Reader, encode: Callable[[], Submission]) -> None:
        """In a thread of its own: prompt to tokens, then a command for the engine."""
        try:
            submission = None if reader.is_dropped or self._is_over else encode()
            with self._lock:
                if submission is not None and not (reader.is_dropped or self._is_over):
                    self._enqueue([reader], [submission])
        except BaseException as problem:  # whatever it is, its reader must not wait for ever
            self.give_back(reader)
            reader.deliver(problem)
            return
        if not reader.is_submitted:
            self.give_back(reader)
