"""Metrics: names as vLLM has them, values as requests came and went."""

import threading
from pathlib import Path

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families
from scripted import saying
from serving import CHAT, HELLO, Running, serving, until

VLLM = [
    "num_requests_running", "num_requests_waiting", "kv_cache_usage_perc", "prefix_cache_queries_total",
    "prefix_cache_hits_total", "prompt_tokens_total", "generation_tokens_total", "num_preemptions_total",
    "time_to_first_token_seconds_count", "inter_token_latency_seconds_count", "e2e_request_latency_seconds_count",
    "request_queue_time_seconds_count", "request_prefill_time_seconds_count", "request_decode_time_seconds_count",
    "request_prompt_tokens_sum", "request_generation_tokens_sum", "request_success_total",
    "spec_decode_num_drafts_total", "spec_decode_num_draft_tokens_total", "spec_decode_num_accepted_tokens_total",
]  # fmt: skip


def values(one: Running, prefix: str = "stretto") -> dict[str, float]:
    """By name and, where there is one, the reason."""
    response = one.http.get("/metrics")
    assert response.headers["content-type"].startswith("text/plain; version=")
    found = {}
    for family in text_string_to_metric_families(response.text):
        for sample in family.samples:
            assert sample.name.startswith(f"{prefix}:") and sample.labels["model_name"] == "toy"
            if "le" not in sample.labels:
                reason = sample.labels.get("finished_reason") or sample.labels.get("reason")
                name = sample.name.removeprefix(f"{prefix}:")
                found[f"{name} {reason}" if reason else name] = sample.value
    return found


@pytest.mark.parametrize("prefix", ["stretto", "vllm"])
def test_what_requests_leave_behind(tmp_path: Path, prefix: str) -> None:
    with serving(saying(tmp_path, "Hello"), prefix=prefix, max_waiting=2) as one:
        one.chat(max_tokens=3)
        one.events(max_tokens=50, n=2)
        one.settled()
        assert one.post(CHAT, {"messages": HELLO, "n": 129}).status_code == 400
        found = values(one, prefix)
    assert found["prompt_tokens_total"] == 3 * 14 == found["request_prompt_tokens_sum"]
    assert found["generation_tokens_total"] == 3 + 6 + 6 == found["request_generation_tokens_sum"]
    assert found["request_success_total length"] == 1 and found["request_success_total stop"] == 2
    assert found["time_to_first_token_seconds_count"] == found["e2e_request_latency_seconds_count"] == 3
    assert found["inter_token_latency_seconds_count"] == 3 + 6 + 6 - 3
    assert found["request_rejected_total invalid_value"] == 1
    assert found["num_requests_running"] == 0 and found["kv_cache_usage_perc"] == 0
    for name in VLLM:
        assert any(known.partition(" ")[0] == name for known in found), name


def test_requests_that_end_early_have_a_reason(tmp_path: Path) -> None:
    llm = saying(tmp_path, "x" * 100)
    with serving(llm) as one:
        llm.scripted.gate.close()
        with pytest.raises(httpx.ReadTimeout):
            one.post(CHAT, {"messages": HELLO}, timeout=0.05)
        one.post(CHAT, {"messages": HELLO, "timeout": 0.02})
        llm.scripted.gate.open()
        one.settled()
        found = values(one)
    assert found["aborts_total disconnect"] == found["aborts_total timeout"] == 1
    assert found["request_rejected_total timeout"] == 1


@pytest.mark.parametrize(("most", "status"), [(27, 429), (28, 200), (None, 200)])
def test_prompts_that_are_too_long_to_wait_are_told_to_come_again(
    tmp_path: Path, most: int | None, status: int
) -> None:
    """A prompt of 14 tokens waits for its first step; another one fits beside it, or does not."""
    llm, found = saying(tmp_path, "Hello"), list[httpx.Response]()
    with serving(llm, max_queued_tokens=most) as one:

        def ask() -> None:
            with httpx.Client(base_url=one.url, timeout=30) as client:
                found.append(client.post(CHAT, json={"messages": HELLO}))

        llm.scripted.gate.close()
        threads = [threading.Thread(target=ask) for _ in range(2)]
        for number, thread in enumerate(threads):
            thread.start()
            until(lambda n=number: one.service.llm.num_requests == n + 1 or bool(found))
        llm.scripted.gate.open()
        for thread in threads:
            thread.join()
        one.settled()
        assert one.chat()["usage"]["prompt_tokens"] == 14
        assert one.service.llm._admission._queued._most == (most or 8 * 128), "the cache holds 128 tokens"
        rejected = values(one).get("request_rejected_total busy", 0)
    assert sorted(response.status_code for response in found) == [200, status] and rejected == (status == 429)
    if status == 429:
        error = found[0].json()["error"]
        assert error["code"] == "busy" and "max_queued_tokens is 27" in error["message"]
        assert found[0].headers["retry-after"] == "1" and "x-should-retry" not in found[0].headers
