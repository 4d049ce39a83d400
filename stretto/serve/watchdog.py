"""`Watchdog`: a thread that sees when the engine's thread does not come round, and says where it stands.

It is a thread since the event loop may be what waits. A kernel that never gives the interpreter's lock back stops it,
too; whoever asks for /health then gets no answer.
"""

import os
import threading

from stretto.llm.asynchronous import AsyncLLM
from stretto.serve.log import LOGGER
from stretto.serve.service import Service

EXIT_CODE = 1  # of a process that gives up: supervisors restart what failed
_LOOKS, _LONGEST_LOOK = 4, 5.0  # per time that is allowed; seconds between two at most


class Watchdog:
    """Watches `llm`, the model of `service`, from `start` to `end`. An engine that ended by itself is stuck, too."""

    def __init__(self, service: Service, llm: AsyncLLM) -> None:
        self._service, self._llm = service, llm
        self._is_stuck = False
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="stretto-watchdog", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def end(self) -> None:
        """No more is said when this returns."""
        self._over.set()
        self._thread.join()

    def _run(self) -> None:
        seconds = self._service.config.stuck_seconds
        while not self._over.wait(min(seconds / _LOOKS, _LONGEST_LOOK)):
            self._look()

    def _look(self) -> None:
        service, llm, config = self._service, self._llm, self._service.config
        was_stuck, silence = self._is_stuck, llm.thread.silence
        has_ended = llm.is_over and service.state == "ready"
        self._is_stuck = has_ended or silence > config.stuck_seconds
        if was_stuck and not self._is_stuck:
            LOGGER.warning("the engine comes round again")
        if self._is_stuck and not was_stuck:
            service.metrics.stuck()
            facts = {"seconds": round(silence, 1), "requests": llm.num_requests, "has_ended": has_ended}
            LOGGER.error("the engine is stuck", extra={"facts": facts | {"stack": llm.thread.stack()}})
            if config.exit_when_stuck:
                os._exit(EXIT_CODE)  # at once: an end in good order would wait for the engine
