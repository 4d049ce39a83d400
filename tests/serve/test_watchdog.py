"""An engine that does not come round: health, the log, a metric, the end of the process; and no false alarm."""

import json
import logging
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from scripted import ScriptedLLM, saying
from serving import CHAT, serving, slot_of, until

from stretto.serve.watchdog import EXIT_CODE

SECRET = [{"role": "user", "content": "a secret prompt"}]


def test_a_stuck_engine_is_not_healthy_and_the_log_says_where_it_stands(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="stretto.serve")
    llm = saying(tmp_path, "x")

    def said(text: str) -> list[logging.LogRecord]:
        return [record for record in caplog.records if record.getMessage() == text]

    with serving(llm, stuck_seconds=0.1) as one:
        time.sleep(0.3)
        one.chat(messages=SECRET, max_tokens=1)
        assert one.http.get("/health").status_code == 200, "it had nothing to do, or did it"
        for times in (1, 2):
            llm.scripted.gate.close()
            thread = threading.Thread(target=lambda: one.post(CHAT, {"messages": SECRET, "max_tokens": 1}))
            thread.start()
            until(lambda n=times: len(said("the engine is stuck")) == n)
            refused = one.http.get("/health")
            assert refused.status_code == one.http.get("/ready").status_code == 503
            assert refused.json()["error"]["message"] == "The engine does not answer"
            time.sleep(0.2)
            llm.scripted.gate.open()
            thread.join()
            until(lambda n=times: len(said("the engine comes round again")) == n)
            assert one.http.get("/health").status_code == 200
        assert f'stretto:engine_stuck_total{{model_name="toy"}} {times}.0' in one.http.get("/metrics").text
    records = said("the engine is stuck")
    assert len(records) == 2, "once each time"
    facts = records[0].facts  # type: ignore[attr-defined]
    assert facts["seconds"] >= 0.1 and facts["requests"] == 1
    where = [place.rpartition("/")[2] for place in facts["stack"]]
    assert any(place.startswith("scripted.py:") and place.endswith(" step") for place in where)
    assert where.index(next(p for p in where if p.endswith(" _step"))) < len(where) - 1, "the innermost call comes last"
    assert "secret" not in json.dumps(facts)


def test_every_model_that_is_loaded_is_watched(tmp_path: Path) -> None:
    """And none longer than it is loaded."""

    def count() -> int:
        return sum(thread.name == "stretto-watchdog" for thread in threading.enumerate())

    def make(name: str) -> ScriptedLLM:
        (tmp_path / name).mkdir(exist_ok=True)
        return saying(tmp_path / name, "x")

    before = count()
    slots = [slot_of(lambda name=name: make(name), name, stuck_seconds=0.1) for name in "ab"]  # type: ignore[misc]
    with serving(slots, admin_key="root") as one:
        assert count() == before + 1
        one.chat(model="b", max_tokens=1)
        assert count() == before + 2
        engine = slots[1].service.llm.llm.engine
        engine.gate.close()  # type: ignore[attr-defined]
        thread = threading.Thread(target=lambda: one.post(CHAT, {"model": "b", "messages": SECRET, "max_tokens": 1}))
        thread.start()
        until(lambda: 'stretto:engine_stuck_total{model_name="b"} 1.0' in one.http.get("/metrics").text)
        assert one.http.get("/health").status_code == 503, "one engine does not answer"
        assert 'engine_stuck_total{model_name="a"}' not in one.http.get("/metrics").text
        engine.gate.open()  # type: ignore[attr-defined]
        thread.join()
        for name, left in (("b", 1), ("a", 0)):
            assert one.post("/admin/models/unload", {"model": name}, headers={"x-api-key": "root"}).status_code == 200
            assert count() == before + left
        one.chat(model="a", max_tokens=1)
        assert count() == before + 1
    assert count() == before


HELD = """
import sys, tempfile, threading
from pathlib import Path
from scripted import saying
from serving import serving
from stretto.serve.log import to_stream
to_stream()
with tempfile.TemporaryDirectory() as folder:
    llm = saying(Path(folder), "x")
    drains = sys.argv[1] == "drain"
    how = {"stuck_seconds": 1.0 if drains else 0.1, "drain_timeout": 0.01, "exit_when_stuck": sys.argv[1] != "stay"}
    with serving(llm, **how) as one:
        llm.scripted.gate.close()
        if drains:
            threading.Timer(0.2, one.loop.call_soon_threadsafe, [one.lifecycle.end]).start()
        else:
            threading.Timer(1.0, llm.scripted.gate.open).start()
        one.chat(max_tokens=1)
"""


@pytest.mark.parametrize(("how", "code"), [("exit", EXIT_CODE), ("stay", 0), ("drain", EXIT_CODE)])
def test_a_process_ends_if_it_shall(how: str, code: int) -> None:
    """With a status that supervisors take for a failure, once the log has its line."""
    environ = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", HELD, how], env=environ, capture_output=True, text=True, timeout=60)
    assert done.returncode == code, done.stderr
    lines = [json.loads(line) for line in done.stderr.splitlines() if line.startswith("{")]
    assert [line["level"] for line in lines if line["event"] == "the engine is stuck"] == ["error"]
    if how != "drain":  # which tells its clients first
        assert [line["event"] for line in lines if line["event"] == "request"] == ([] if code else ["request"])
