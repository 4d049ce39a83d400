"""The builder: private, atomic, named by what went in, and replaceable by torch when it cannot work."""

import stat
import subprocess
import sys
from pathlib import Path

import pytest

from stretto.core.env import read_env
from stretto.core.errors import RunError, UserError
from stretto.engine.backend import thread_pool
from stretto.kernels.native import build as builder
from stretto.kernels.native.build import build, find_compiler, supported_levels
from stretto.kernels.native.library import load

LEVEL = supported_levels()[0]


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Sources that compile in a moment."""
    sources = tmp_path / "src"
    sources.mkdir()
    (sources / "one.cpp").write_text('extern "C" int one() { return 1; }\n')
    monkeypatch.setattr(builder, "SOURCES", sources)
    return tmp_path / "cache"


def test_a_build_is_found_again_and_is_ours_alone(small: Path) -> None:
    notes: list[str] = []
    first = build("generic", small, note=notes.append)
    assert build("generic", small, note=notes.append) == first and len(notes) == 1
    assert all(stat.S_IMODE(folder.stat().st_mode) == 0o700 for folder in (first.parent, first.parent.parent))
    made = first.stat().st_mtime_ns
    assert build("generic", small, clean=True).stat().st_mtime_ns > made
    assert not [p for p in first.parent.iterdir() if p.name not in ("lock", "libstretto.so")], "nothing is left behind"


def test_other_sources_and_levels_are_other_builds(small: Path) -> None:
    first = build("generic", small)
    (builder.SOURCES / "one.cpp").write_text('extern "C" int one() { return 2; }\n')
    assert len({first, build("generic", small), build(LEVEL, small)}) == 3


def test_a_build_that_fails_names_its_log(small: Path) -> None:
    (builder.SOURCES / "one.cpp").write_text("int one( {\n")
    with pytest.raises(RunError, match="do not compile") as caught:
        build("generic", small)
    log = Path(str(caught.value.why).rsplit(" ", 1)[1])
    assert "error" in log.read_text()
    (builder.SOURCES / "one.cpp").write_text("int one();\n")
    assert build("generic", small).exists()


def test_without_a_compiler_there_is_a_reason(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    assert find_compiler() is None
    with pytest.raises(RunError, match=r"no C\+\+ compiler"):
        build("generic", small)


def test_first_starts_at_once_build_once(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from stretto.kernels.native import build as b;"
        "b.SOURCES = Path(sys.argv[1]); print(b.build('generic', Path(sys.argv[2]), note=print))"
    )
    sources = tmp_path / "src"
    sources.mkdir()
    (sources / "one.cpp").write_text('extern "C" int one() { return 1; }\n')
    words = [sys.executable, "-c", code, str(sources), str(tmp_path / "cache")]
    started = [subprocess.Popen(words, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    outputs = [process.communicate()[0] for process in started]
    assert sum("compiling" in output for output in outputs) == 1
    assert len({output.splitlines()[-1] for output in outputs}) == 1


def test_the_library_says_what_it_was_compiled_for() -> None:
    env = read_env()
    for level in supported_levels():
        assert load(build(level, env.cache_dir)).level == level


def test_settings_that_cannot_be_are_refused() -> None:
    with pytest.raises(UserError, match="STRETTO_LEVEL=avx9"):
        thread_pool(read_env({"STRETTO_LEVEL": "avx9"}))
    with pytest.raises(UserError, match="STRETTO_THREADS=-1"):
        read_env({"STRETTO_THREADS": "-1"})
