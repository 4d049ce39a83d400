"""Metrics in Prometheus' text form, under vLLM's names, so that dashboards transfer.

Times are of the monotonic clock: to the first token from the moment a request arrived at this server, before its prompt
was encoded; between tokens as they reach the client.
"""

import time
from collections.abc import Iterator, Mapping, Sequence
from itertools import accumulate

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from stretto.llm.history import Bins
from stretto.llm.results import Chunk, Result
from stretto.llm.watch import Measures
from stretto.serve.usage import cached_tokens

PREFIXES = ("stretto", "vllm")
_SECONDS = (0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0,
            80.0, 160.0, 640.0)  # fmt: skip
_BETWEEN = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5)
_TOKENS = tuple(float(m * 10**e) for e in range(6) for m in (1, 2, 5))


class Metrics:
    """All metrics of a model, in a registry of their own. model: the value of the label `model_name`."""

    def __init__(self, prefix: str, model: str) -> None:
        self.registry = CollectorRegistry(auto_describe=False)
        self._prefix, self.model = f"{prefix}:", model
        self._engine = _Engine(self._prefix, model)
        self.registry.register(self._engine)
        self.prompt = self._counter("prompt_tokens", "Tokens of prompts")
        self.generated = self._counter("generation_tokens", "Tokens that were generated")
        self.queries = self._counter("prefix_cache_queries", "Tokens of prompts that were looked up")
        self.hits = self._counter("prefix_cache_hits", "Tokens of prompts that were found")
        self.success = self._counter("request_success", "Requests that ended by themselves", "finished_reason")
        self._rejected = self._counter("request_rejected", "Requests that were refused", "reason")
        self._stuck = self._counter("engine_stuck", "Times that the engine did not come round in time")
        self.aborts = self._counter("aborts", "Requests that were ended early", "reason")
        self.first = self._histogram("time_to_first_token_seconds", "Arrival to first token", _SECONDS)
        self.between = self._histogram("inter_token_latency_seconds", "Between two tokens", _BETWEEN)
        self.whole = self._histogram("e2e_request_latency_seconds", "Arrival to end", _SECONDS)
        self.queue = self._histogram("request_queue_time_seconds", "In the queue", _SECONDS)
        self.prefill = self._histogram("request_prefill_time_seconds", "First step to first token", _SECONDS)
        self.decode = self._histogram("request_decode_time_seconds", "First token to last", _SECONDS)
        self.num_prompt = self._histogram("request_prompt_tokens", "Tokens of a prompt", _TOKENS)
        self.num_generated = self._histogram("request_generation_tokens", "Tokens of an answer", _TOKENS)

    def rejected(self, reason: str) -> None:
        """A request was refused."""
        self._rejected.labels(self.model, reason).inc()

    def stuck(self) -> None:
        """The engine does not come round."""
        self._stuck.labels(self.model).inc()

    def request(self, arrived: float) -> "RequestMetrics":
        """Of one request, which arrived then."""
        return RequestMetrics(self, arrived)

    def take(self, measures: Measures | None) -> None:
        """What the engine says of itself now; None while there is none."""
        self._engine.measures = measures

    def _counter(self, name: str, help: str, *labels: str) -> Counter:
        return Counter(self._prefix + name, help, ("model_name", *labels), registry=self.registry)

    def _histogram(self, name: str, help: str, buckets: tuple[float, ...]) -> Histogram:
        return Histogram(self._prefix + name, help, ("model_name",), registry=self.registry, buckets=buckets)


def render(all: Sequence[Metrics]) -> bytes:
    """The page: one family of each name, with the samples of all models."""
    whole = CollectorRegistry(auto_describe=False)
    whole.register(_Together([one.registry for one in all]))
    return generate_latest(whole)


class _Together(Collector):
    """Families of the same name in several registries, as one."""

    def __init__(self, registries: Sequence[CollectorRegistry]) -> None:
        self._registries = registries

    def collect(self) -> Iterator[Metric]:
        found: dict[str, Metric] = {}
        for family in (family for registry in self._registries for family in registry.collect()):
            if family.name in found:
                found[family.name].samples += family.samples
            else:
                found[family.name] = family
        yield from found.values()


class RequestMetrics:
    """What one request adds while it is read."""

    def __init__(self, metrics: Metrics, arrived: float) -> None:
        self._metrics, self._model, self._arrived = metrics, metrics.model, arrived
        self._latest: float | None = None

    def chunk(self, chunk: Chunk) -> None:
        """Tokens have come."""
        metrics, model, now, count = self._metrics, self._model, time.monotonic(), len(chunk.token_ids)
        if count:
            if self._latest is None:
                metrics.first.labels(model).observe(now - self._arrived)
            else:
                between = metrics.between.labels(model)
                for _ in range(count):
                    between.observe((now - self._latest) / count)
            self._latest = now
            metrics.generated.labels(model).inc(count)
        if chunk.result is not None:
            self._end(chunk.result, now)

    def abort(self, reason: str) -> None:
        """It was ended early."""
        self._metrics.aborts.labels(self._model, reason).inc()

    def _end(self, result: Result, now: float) -> None:
        metrics, model, timings, usage = self._metrics, self._model, result.timings, result.usage
        metrics.success.labels(model, result.finish_reason).inc()
        metrics.prompt.labels(model).inc(usage.prompt_tokens)
        metrics.queries.labels(model).inc(usage.prompt_tokens)
        metrics.hits.labels(model).inc(cached_tokens(result))
        metrics.whole.labels(model).observe(now - self._arrived)
        metrics.queue.labels(model).observe(timings.queue_s)
        metrics.prefill.labels(model).observe(timings.prefill_s)
        metrics.decode.labels(model).observe(timings.decode_s)
        metrics.num_prompt.labels(model).observe(usage.prompt_tokens)
        metrics.num_generated.labels(model).observe(usage.completion_tokens)


class _Engine(Collector):
    """What the engine says of itself when it is asked."""

    def __init__(self, prefix: str, model: str) -> None:
        self._prefix, self._model = prefix, model
        self.measures: Measures | None = None

    def collect(self) -> Iterator[Metric]:
        if self.measures is None:
            return
        now = self.measures.counts
        yield self._gauge("num_requests_running", "Requests that run", now.running)
        yield self._gauge("num_requests_waiting", "Requests that wait", now.waiting)
        yield self._gauge("queued_tokens", "Tokens that the waiting requests need", now.queued_tokens)
        yield self._gauge("kv_cache_usage_perc", "Share of pages in use", _used(now.pages, now.free_pages))
        yield self._gauge("state_slots_usage_perc", "Share of state slots in use", _used(now.slots, now.free_slots))
        yield self._sum("num_preemptions", "Requests that lost their cache for a while", now.preemptions)
        yield self._sum("spec_decode_num_drafts", "Drafts that were verified", now.drafts)
        yield self._sum("spec_decode_num_draft_tokens", "Tokens of those drafts", now.draft_tokens)
        yield self._sum("spec_decode_num_accepted_tokens", "Those that became output", now.accepted_tokens)
        times: list[tuple[Mapping[str, str], Bins, float]] = [
            ({"phase": phase}, bins, 1e-3) for phase, bins in self.measures.milliseconds.items()
        ]
        yield self._bins("step_time_seconds", "A step, by what it did", times)
        yield self._bins("step_num_tokens", "Rows of a step", [({}, self.measures.tokens, 1.0)])

    def _gauge(self, name: str, help: str, value: float) -> Metric:
        family = GaugeMetricFamily(self._prefix + name, help, labels=["model_name"])
        family.add_metric([self._model], value)
        return family

    def _sum(self, name: str, help: str, value: float) -> Metric:
        family = CounterMetricFamily(self._prefix + name, help, labels=["model_name"])
        family.add_metric([self._model], value)
        return family

    def _bins(self, name: str, help: str, found: Sequence[tuple[Mapping[str, str], Bins, float]]) -> Metric:
        """found: per histogram its labels beside the model, its bins, and what their unit is in that of the metric."""
        family = HistogramMetricFamily(self._prefix + name, help, labels=["model_name", *found[0][0]])
        for labels, bins, unit in found:
            bounds = [*(str(bound * unit) for bound in bins.bounds), "+Inf"]
            below = list(zip(bounds, accumulate(bins.counts), strict=True))
            family.add_metric([self._model, *labels.values()], below, bins.sum * unit)
        return family


def _used(have: int, free: int) -> float:
    return (have - free) / have if have else 0.0
