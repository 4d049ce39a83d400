"""How a command ends: exit codes, messages, tracebacks, signals, closed pipes."""

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from command import Run

from stretto.cli import main
from stretto.core.errors import FitError, MissingDependency, ModelFileError, RunError, UserError


@pytest.mark.parametrize(
    ("problem", "expected", "text"),
    [
        (KeyboardInterrupt(), 130, "interrupted"),
        (MemoryError(), 4, "error: not enough memory"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"), 4, "error: not enough memory"),
        (OSError(errno.ENOSPC, "No space left on device"), 1, "error: no space left on device"),
        (PermissionError(errno.EACCES, "Permission denied", "/x"), 1, "error: /x: permission denied"),
        (BrokenPipeError(), 1, ""),
        (KeyError("x"), 1, "error: this is a bug in stretto: KeyError: 'x'"),
        (UserError("a", "b", "c"), 2, "error: a\nwhy: b\ntry: c\n"),
        (RunError("a"), 1, "error: a\n"),
        (ModelFileError("a"), 3, "error: a\n"),
        (FitError("a"), 4, "error: a\n"),
        (MissingDependency("a"), 5, "error: a\n"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else "",
)
def test_how_each_failure_ends(
    cli: Run, monkeypatch: pytest.MonkeyPatch, problem: BaseException, expected: int, text: str
) -> None:
    def fail(options: object) -> int:
        raise problem

    monkeypatch.setattr("stretto.cli.pull.run", fail)
    code, out, err = cli("pull", "smollm2")
    assert (code, out) == (expected, "") and err.startswith(text) and bool(err) == bool(text)


def test_a_traceback_only_when_it_is_asked_for(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("stretto.cli.pull.run", lambda options: 1 // 0)
    monkeypatch.delenv("STRETTO_TRACEBACK", raising=False)
    assert main(["pull", "x"]) == 1
    quiet = capsys.readouterr().err
    assert "Traceback" not in quiet and "STRETTO_TRACEBACK=1" in quiet and len(quiet.splitlines()) == 2
    monkeypatch.setenv("STRETTO_TRACEBACK", "1")
    assert main(["pull", "x"]) == 1
    assert "Traceback" in capsys.readouterr().err


# -- signals and pipes -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("number", "expected"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signals_end_a_running_answer(tiny: Path, number: int, expected: int) -> None:
    code = (
        "import sys; from stretto.cli import bench, main; measure = bench.measure\n"
        "bench.measure = lambda *given: print('measuring', flush=True) or measure(*given)\n"
        "sys.exit(main(sys.argv[1:]))"
    )
    words = ("bench", tiny, "--repeat", "1000000", "--new-tokens", "60", "--prompt-tokens", "60")
    child = subprocess.Popen(
        [sys.executable, "-c", code, *map(str, words)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert child.stdout is not None and child.stdout.readline() == "measuring\n"
    child.send_signal(number)
    out, err = child.communicate(timeout=60)
    assert child.returncode == expected, err
    assert out == "" and err == ("interrupted\n" if number == signal.SIGINT else "terminated\n")


@pytest.fixture
def buffered(monkeypatch: pytest.MonkeyPatch) -> None:
    """Standard output is buffered, so what cannot be written is noticed late, at the flush."""
    monkeypatch.delenv("PYTHONUNBUFFERED", raising=False)


@pytest.mark.usefixtures("buffered")
def test_a_closed_pipe_is_quiet() -> None:
    read, write = os.pipe()
    os.close(read)
    for words in (["--help"], ["run", "--help"]):
        done = subprocess.run([sys.executable, "-m", "stretto", *words], stdout=write, stderr=subprocess.PIPE)
        assert (done.returncode, done.stderr) == (1, b"")
    os.close(write)


@pytest.mark.usefixtures("buffered")
def test_a_full_disk_is_said() -> None:
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "stretto", "--help"], stdout=full, stderr=subprocess.PIPE, text=True
        )
    assert done.returncode == 1
    assert done.stderr.splitlines()[0] == "error: no space left on device" and "Traceback" not in done.stderr
