"""`EngineThread`: the one thread that touches an engine. It obeys the commands of `Admission`, and steps."""

import logging
import sys
import threading
import time
import traceback
from concurrent.futures import Future

from stretto.engine.request import Event
from stretto.llm.admission import Add, Admission, Ask, Drop, Reader, Stop
from stretto.llm.streams import STREAM_PATIENCE
from stretto.llm.sync import LLM
from stretto.llm.watch import Watch

_log = logging.getLogger(__name__)


class EngineThread:
    """Serves the readers of `admission` with one `LLM`, whose engine nobody else may touch until `ended` is done.

    It ends by the command `Stop`, or by a fault of ours. Then all readers hear why, and so does everybody who comes
    later.
    """

    def __init__(self, llm: LLM, admission: Admission) -> None:
        self._llm, self._admission = llm, admission
        self._live: dict[int, Reader] = {}  # by request id
        self._queued: dict[int, Reader] = {}  # those of them whose prompts are not read yet
        self._watch = Watch(llm.engine)
        self._ticked: float | None = (
            None  # when it last came round, on `time.monotonic`; None while it has nothing to do
        )
        self.ended: Future[None] = Future()  # from then on, `join` takes no time
        self._thread = threading.Thread(target=self._run, name="stretto-engine", daemon=True)
        self._thread.start()

    @property
    def silence(self) -> float:
        """Seconds since it last came round; 0 while it has nothing to do."""
        return 0.0 if (ticked := self._ticked) is None else time.monotonic() - ticked

    def stack(self) -> list[str]:
        """Where it stands: file, line and function of every call, the outermost first. No values."""
        frame = sys._current_frames().get(self._thread.ident or 0)
        return [f"{one.filename}:{one.lineno} {one.name}" for one in traceback.extract_stack(frame)] if frame else []

    def join(self) -> None:
        """Wait until the thread is gone."""
        self._thread.join()

    def _run(self) -> None:
        fault: BaseException | None = None
        try:
            while self._obey():
                self._step()
        except BaseException as problem:
            fault = problem
            raise  # `threading` prints where it happened
        finally:
            self._ticked = None
            self._leave(fault)

    def _obey(self) -> bool:
        """Run the commands that are there, and no more of them; wait for one if the engine is idle. False = stop."""
        inbox = self._admission.inbox
        commands = list[Add | Drop | Ask | Stop]()
        if self._llm.engine.is_idle:
            self._ticked = None
            commands.append(inbox.get())
        self._ticked = time.monotonic()
        commands += [inbox.get_nowait() for _ in range(inbox.qsize())]
        for command in commands:
            match command:
                case Add():
                    self._add(command)
                case Drop(reader):
                    self._let_go(reader)
                case Ask():
                    command.ask(self._watch)
                case Stop():
                    return False
        return True

    def _step(self) -> None:
        try:
            events = self._llm.engine.step(STREAM_PATIENCE)
        except Exception as problem:  # its requests are gone; this thread stays
            for reader in list(self._live.values()):
                self._fail(reader, problem)
            return
        self._note_starts()
        for event in events:
            self._watch.add(event)
            if event.rid in self._live:
                self._report(self._live[event.rid], event)

    def _note_starts(self) -> None:
        for rid, reader in list(self._queued.items()):
            assert reader.stream is not None
            if reader.stream.request.timeline.started is not None:
                self._admission.start(self._queued.pop(rid))

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

    def _add(self, command: Add) -> None:
        reader = command.reader
        try:
            reader.stream = self._llm.submit(command.submission)
        except Exception as problem:  # of this request only
            self._fail(reader, problem)
        else:
            rid = reader.stream.request.rid
            self._live[rid] = self._queued[rid] = reader
            self._watch.begin(reader.stream.request)

    def _fail(self, reader: Reader, problem: BaseException) -> None:
        self._let_go(reader)
        reader.deliver(problem)

    def _let_go(self, reader: Reader) -> None:
        """Nothing of a reader's request stays, here or in the engine, whether it has ended or not."""
        if reader.stream is not None and self._live.pop(reader.stream.request.rid, None) is not None:
            self._queued.pop(reader.stream.request.rid, None)
            self._watch.end(reader.stream.request)
            try:
                self._llm.engine.cancel(reader.stream.request.rid)
            except Exception:  # it is out of the engine all the same, and nobody waits for it
                _log.exception("a request that was dropped could not be released cleanly")
        self._admission.give_back(reader)

    def _leave(self, fault: BaseException | None) -> None:
        try:
            for reader in self._admission.end(fault):
                self._fail(reader, self._admission.refusal())
            while not self._admission.inbox.empty():
                command = self._admission.inbox.get()
                if isinstance(command, Ask):
                    command.fail(self._admission.refusal())
        finally:
            self._watch.close()
            self.ended.set_result(None)
