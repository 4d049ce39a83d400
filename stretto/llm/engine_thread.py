"""`EngineThread`: the one thread that touches an engine. Readers in event loops hand it requests, and get chunks."""

import asyncio
import logging
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from queue import SimpleQueue

from stretto.core.errors import BusyError, RunError, UserError
from stretto.core.sampling import Sampling
from stretto.engine.request import Event
from stretto.llm.results import Chunk, Stream
from stretto.llm.sync import LLM, STREAM_PATIENCE

_ENCODERS = 4  # threads for templates and tokenizers: one endless template does not stop the others
_PACE_OF = 32  # requests whose ends tell how fast places come free
_FIRST_WAIT, _LEAST_WAIT, _LONGEST_WAIT = 1.0, 0.1, 60.0  # seconds until a retry: before a pace is known, bounds
_log = logging.getLogger(__name__)


class Reader:
    """Who waits for the chunks of one request, in which event loop."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._arrived: asyncio.Queue[Chunk | BaseException] = asyncio.Queue()
        self.is_submitted = self.is_dropped = False
        self.stream: Stream | None = None  # once it is in the engine

    def deliver(self, item: Chunk | BaseException) -> bool:
        """Hand `item` over, from any thread; whether there is a loop to take it."""
        try:
            self._loop.call_soon_threadsafe(self._arrived.put_nowait, item)
        except RuntimeError:  # the loop is closed
            return False
        return True

    async def next(self) -> Chunk:
        """The next chunk; raises what was delivered in place of one."""
        item = await self._arrived.get()
        if isinstance(item, BaseException):
            raise item
        return item


class EngineThread:
    """Serves readers of any event loops with one `LLM`, whose engine nobody else may touch until `ended` is done.

    A reader takes a place (`open`). Its prompt is encoded in a thread of its own, then a command adds its request to
    the engine. `drop` may come at any moment and any number of times: before the command, it keeps the request out;
    after it, a second command follows the first. So no request stays that nobody waits for, and a place is given back
    by whoever held the request last. If this thread ends, all readers hear why, and so does everybody who comes later.
    """

    def __init__(self, llm: LLM, max_waiting: int) -> None:
        self._llm, self._max_waiting = llm, max_waiting
        self._live: dict[int, Reader] = {}  # by request id; only this thread looks at it
        self._inbox: SimpleQueue[Callable[[], None] | None] = SimpleQueue()  # None: stop
        self._lock = threading.Lock()  # over places, and over what may still be submitted
        self._readers: set[Reader] = set()  # those that hold a place
        self._ends: deque[float] = deque(maxlen=_PACE_OF)  # when the latest places came free, others being taken
        self._is_over = False
        self._problem: BaseException | None = None  # what ended this thread, if that is a fault
        # Encoding needs no lock: a tokenizer's Rust object and a compiled template never change, every rendering has an
        # account of its own, and what `Tokenizer` remembers can at worst be computed twice, with the same result.
        self._encoders = ThreadPoolExecutor(_ENCODERS, thread_name_prefix="stretto-encode")
        self.ended: Future[None] = Future()
        self._thread = threading.Thread(target=self._run, name="stretto-engine", daemon=True)
        self._thread.start()

    @property
    def num_requests(self) -> int:
        """Places that are taken: prompts being encoded, requests queued or running."""
        return len(self._readers)

    # -- from any thread -----------------------------------------------------------------------------------------------

    def open(self, reader: Reader, encode: Callable[[], list[int]], sampling: Sampling, *, continues: bool) -> None:
        """Take a place for `reader` and start encoding. Raises BusyError if there is none, UserError if all is over."""
        with self._lock:
            if self._is_over:
                raise self._refusal()
            if len(self._readers) >= self._max_waiting:
                seconds = self._pace()
                raise BusyError(
                    f"{len(self._readers):,} requests are queued or running",
                    why=f"max_waiting is {self._max_waiting:,}",
                    try_=f"again in {seconds:.1f} s",
                    retry_after=seconds,
                )
            self._encoders.submit(self._encode, reader, encode, sampling, continues)
            self._readers.add(reader)

    def drop(self, reader: Reader) -> None:
        """Nobody reads any more: its request ends, within one step if it runs."""
        with self._lock:
            reader.is_dropped = True
            if reader.is_submitted and reader in self._readers:
                self._inbox.put(partial(self._let_go, reader))

    def stop(self) -> None:
        """Take nothing more, end what there is, end this thread; once `ended` is done, `join` takes no time."""
        with self._lock:
            self._is_over = True
        self._inbox.put(None)

    def join(self) -> None:
        """Wait until the thread is gone."""
        self._thread.join()

    def _refusal(self) -> UserError:
        if self._problem is None:
            return UserError("this AsyncLLM is closed", try_="make a new one")
        why = f"{type(self._problem).__name__}: {self._problem}"
        error = RunError("the engine thread has ended", why=why, try_="make a new AsyncLLM")
        error.__cause__ = self._problem
        return error

    def _pace(self) -> float:
        """Seconds between two places that come free, as measured lately."""
        n = len(self._ends) - 1
        seconds = (self._ends[-1] - self._ends[0]) / n if n > 0 else _FIRST_WAIT
        return min(max(seconds, _LEAST_WAIT), _LONGEST_WAIT)

    def _encode(self, reader: Reader, encode: Callable[[], list[int]], sampling: Sampling, continues: bool) -> None:
        """In a thread of its own: prompt to tokens, then a command for the engine."""
        try:
            ids = [] if reader.is_dropped or self._is_over else encode()
        except BaseException as problem:  # whatever it is, its reader must not wait for ever
            self._give_back(reader)
            reader.deliver(problem)
            return
        with self._lock:
            reader.is_submitted = not (reader.is_dropped or self._is_over)
            if reader.is_submitted:
                self._inbox.put(partial(self._add, reader, ids, sampling, continues))
        if not reader.is_submitted:
            self._give_back(reader)

    def _give_back(self, reader: Reader) -> None:
        """The place of a reader whose request is nowhere any more."""
        with self._lock:
            if reader in self._readers:
                self._readers.remove(reader)
                self._ends.append(self._llm.engine.clock())
            if not self._readers:
                self._ends.clear()

    # -- in this thread ------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            while self._obey():
                self._step()
        except BaseException as problem:
            self._problem = problem
            raise  # `threading` prints where it happened
        finally:
            self._leave()

    def _obey(self) -> bool:
        """Run the commands that are there, and no more of them; wait for one if the engine is idle. False = stop."""
        commands = [self._inbox.get()] if self._llm.engine.is_idle else []
        commands += [self._inbox.get_nowait() for _ in range(self._inbox.qsize())]
        for command in commands:
            if command is None:
                return False
            command()
        return True

    def _step(self) -> None:
        try:
            events = self._llm.engine.step(STREAM_PATIENCE)
        except Exception as problem:  # its requests are gone; this thread stays
            for reader in list(self._live.values()):
                self._fail(reader, problem)
            return
        for event in events:
            if event.rid in self._live:
                self._report(self._live[event.rid], event)

    def _report(self, reader: Reader, event: Event) -> None:
        assert reader.stream is not None
        chunk = self._llm.read(reader.stream, event)
        if event.finish_reason is not None:
            self._let_go(reader)  # first, so that who has heard the end finds its place free
        is_heard = reader.deliver(chunk) if event.token_ids or event.error is None else True
        if event.error is not None:
            reader.deliver(event.error)
        if not is_heard:
            self._let_go(reader)

    def _add(self, reader: Reader, ids: list[int], sampling: Sampling, continues: bool) -> None:
        try:
            reader.stream = self._llm.add(ids, sampling, continues=continues)
        except Exception as problem:  # of this request only
            self._fail(reader, problem)
        else:
            self._live[reader.stream.request.rid] = reader

    def _fail(self, reader: Reader, problem: BaseException) -> None:
        self._let_go(reader)
        reader.deliver(problem)

    def _let_go(self, reader: Reader) -> None:
        """Nothing of a reader's request stays, here or in the engine, whether it has ended or not."""
        if reader.stream is not None and self._live.pop(reader.stream.request.rid, None) is not None:
            try:
                self._llm.engine.cancel(reader.stream.request.rid)
            except Exception:  # it is out of the engine all the same, and nobody waits for it
                _log.exception("a request that was dropped could not be released cleanly")
        self._give_back(reader)

    def _leave(self) -> None:
        with self._lock:
            self._is_over = True
            left = list(self._readers)
        self._encoders.shutdown(wait=False)  # what is queued there sees that all is over
        try:
            for reader in left:
                self._fail(reader, self._refusal())
        finally:
            self.ended.set_result(None)
