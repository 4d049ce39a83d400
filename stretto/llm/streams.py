"""`Streams`: the requests of one engine that are being read. Each step's events go to the stream they belong to."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

from stretto.engine.engine import Engine
from stretto.engine.request import Event
from stretto.llm.results import Chunk, Result, Stream, Timings, Usage

STREAM_PATIENCE, BATCH_PATIENCE = 0.03, 0.25  # seconds between two looks at a text: of a reader, of a loop


class Streams:
    """Several streams may be read in turn, by iterators and by loops: whoever wants more runs a step for all.

    load_s, approximate: what results say of the model (`Timings`, `Result`).
    """

    def __init__(self, engine: Engine, load_s: float, approximate: tuple[str, ...]) -> None:
        self.engine = engine
        self._load_s, self._approximate = load_s, approximate
        self._open: dict[int, Stream] = {}  # by request

    def __len__(self) -> int:
        """How many are being read."""
        return len(self._open)

    def chunks(self, begin: Callable[[], Stream]) -> Iterator[Chunk]:
        """One stream, which begins when it is read, chunk by chunk to its result. Raises its error. Closing the
        iterator cancels the request."""
        stream = begin()
        with self._reading([stream]):
            is_over = False
            while not is_over:
                if not stream.arrived:
                    self._step(STREAM_PATIENCE)
                    continue
                event = stream.arrived.popleft()
                is_over = event.finish_reason is not None
                if event.token_ids or event.error is None:
                    yield self.read(stream, event)
                if event.error is not None:
                    raise event.error

    def results(self, streams: Iterable[Stream], progress: Callable[[int, int], None] | None = None) -> list[Result]:
        """The results of all, in order. The first error, also one that `streams` raises, cancels the others.

        progress: called with (finished, total) after every step.
        """
        results: dict[int, Result] = {}
        with self._reading(streams) as opened:
            while len(results) < len(opened):
                self._step(BATCH_PATIENCE)
                for stream in opened:
                    while stream.arrived:
                        event = stream.arrived.popleft()
                        if event.error is not None:
                            raise event.error
                        chunk = self.read(stream, event)
                        if chunk.result is not None:
                            results[event.rid] = chunk.result
                if progress is not None:
                    progress(len(results), len(opened))
            return [results[stream.request.rid] for stream in opened]

    def read(self, stream: Stream, event: Event) -> Chunk:
        """An event of `engine.step` as the next chunk of its stream. If it failed, no result: raise `event.error`."""
        stream.pieces.append(event.text)
        stream.logprobs += event.logprobs
        is_whole = event.finish_reason is not None and event.error is None
        result = self._result(stream, event) if is_whole else None
        return Chunk(event.text, event.token_ids, event.accepted, event.rejected_ids, result, event.logprobs)

    def _step(self, patience: float) -> None:
        for event in self.engine.step(patience):
            if (stream := self._open.get(event.rid)) is not None:
                stream.arrived.append(event)

    @contextmanager
    def _reading(self, streams: Iterable[Stream]) -> Iterator[list[Stream]]:
        """Inside, `streams` get their events; at the end, they are cancelled."""
        opened: list[Stream] = []
        try:
            for stream in streams:
                opened.append(stream)
                self._open[stream.request.rid] = stream
            yield opened
        finally:
            for stream in opened:
                del self._open[stream.request.rid]
                self.engine.cancel(stream.request.rid)

    def _result(self, stream: Stream, event: Event) -> Result:
        assert event.finish_reason is not None
        request, line = stream.request, stream.request.timeline
        started = line.arrived if line.started is None else line.started
        first = line.first_token if line.first_token is not None else line.finished or started
        decode_s = (line.finished or first) - first
        prefill_s, cached = first - started, request.job.cached or 0
        return Result(
            text="".join(stream.pieces),
            token_ids=tuple(request.output),
            prompt_token_ids=request.prompt,
            finish_reason=event.finish_reason,
            usage=Usage(len(request.prompt), len(request.output), cached),
            timings=Timings(
                load_s=self._load_s,
                queue_s=started - line.arrived,
                prefill_s=prefill_s,
                decode_s=decode_s,
                prompt_per_second=(len(request.prompt) - cached) / prefill_s if prefill_s > 0 else 0.0,
                predicted_per_second=(len(request.output) - 1) / decode_s if decode_s > 0 else 0.0,
                steps=line.steps,
                draft_n=line.drafted,
                draft_n_accepted=line.accepted,
            ),
            seed=request.noise.seed,
            logprobs=tuple(stream.logprobs),
            approximate=self._approximate,
            prompt_logprobs=tuple(request.prompt_logprobs),
            stop_string=request.text.hit if request.text is not None else None,
            embedding=request.embedding,
        )
