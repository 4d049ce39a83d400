"""The builder: private, atomic, named by what went in, and replaceable by torch when it cannot work."""

import ctypes
import errno
import os
import platform
import signal
import stat
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from stretto.core.env import read_env
from stretto.core.errors import RunError, UserError
from stretto.core.settings import configure
from stretto.kernels.native import build as builder
from stretto.kernels.native.build import build, cpu_features, find_compiler, missing_features, supported_levels
from stretto.kernels.native.library import load
from stretto.llm.backend import thread_team

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
    left = {path.name for path in first.parent.iterdir()}
    assert left == {"lock", "libstretto.so", "build.log"}, "nothing is left behind"
    assert (first.parent / "build.log").read_text() == ""


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


def test_warnings_are_in_the_log(small: Path) -> None:
    (builder.SOURCES / "one.cpp").write_text("int one(double x) { return x; }\n")
    assert "conversion]" in (build("generic", small).parent / "build.log").read_text()


def test_a_killed_build_is_made_again(small: Path) -> None:
    library = build("generic", small)
    library.unlink()
    (library.parent / "work1").mkdir()
    (library.parent / "work1" / "libstretto.so").write_bytes(b"half of it")
    notes: list[str] = []
    assert ctypes.CDLL(str(build("generic", small, note=notes.append))).one() == 1 and len(notes) == 1
    assert not (library.parent / "work1").exists()


def test_builds_that_nobody_used_for_a_month_go(small: Path) -> None:
    def version(number: int, level: str = "generic") -> Path:
        (builder.SOURCES / "one.cpp").write_text(f'extern "C" int one() {{ return {number}; }}\n')
        return build(level, small)

    old, used, other = version(1), version(2), version(1, LEVEL)
    month = time.time() - builder.KEEP_SECONDS - 60
    for library in (old, used, other):
        os.utime(library.parent, (month, month))
    assert version(2) == used and old.exists(), "only what compiles tidies up"
    version(3)
    assert used.exists() and other.exists() == (LEVEL != "generic") and not old.parent.exists()


def test_a_library_that_cannot_be_loaded_is_a_reason(small: Path) -> None:
    library = build("generic", small)
    library.write_bytes(b"\x7fELF")
    with pytest.raises(RunError, match="cannot be loaded") as caught:
        load(library)
    assert str(library) in str(caught.value.why) and str(library.parent) in str(caught.value.try_)


def test_a_cache_that_cannot_be_used_is_a_reason(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small.write_text("a file")
    with pytest.raises(RunError, match="cannot be built") as caught:
        build("generic", small)
    assert str(small) in str(caught.value.why)
    small.unlink()
    library = build("generic", small)
    with monkeypatch.context() as patched:
        patched.setattr(os, "geteuid", lambda: os.getuid() + 1)
        with pytest.raises(RunError, match="cannot be built") as caught:
            build("generic", small)
    assert "belongs to another user" in str(caught.value.why)
    library.parent.parent.chmod(0o777)
    assert build("generic", small) == library and stat.S_IMODE(library.parent.parent.stat().st_mode) == 0o700


def test_a_cache_that_can_only_be_read_serves_what_it_holds(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    library = build("generic", small)

    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    for name in ("utime", "chmod"):
        monkeypatch.setattr(os, name, refuse)
    monkeypatch.setattr(Path, "mkdir", lambda path, *_, **__: None if path.exists() else refuse())
    monkeypatch.setattr(Path, "write_text", refuse)
    monkeypatch.setattr(tempfile, "TemporaryDirectory", refuse)
    assert build("generic", small) == library
    with pytest.raises(RunError, match="cannot be built"):
        build("generic", small, clean=True)


def test_the_library_says_what_it_was_compiled_for() -> None:
    env = read_env()
    for level in supported_levels():
        assert load(build(level, env.cache_dir)).level == level


def test_levels_are_chosen_by_the_flags_of_the_processor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lines as Linux prints them; flags that contain another's name are not that flag."""
    info = tmp_path / "cpuinfo"
    info.write_text(
        "processor\t: 0\nmodel name\t: A\nflags\t\t: fpu avx2 fma f16c avx512_vnni\nvmx flags\t: avx_vnni\n\n"
        "processor\t: 1\nflags\t\t: none\n"
    )
    assert cpu_features(info) == {"fpu", "avx2", "fma", "f16c", "avx512_vnni"}
    info.write_text("processor\t: 0\nFeatures\t: fp asimd asimddp\nCPU part\t: 0xd0c\n")
    assert cpu_features(info) == {"fp", "asimd", "asimddp"}
    assert platform.system() != "Linux" or cpu_features(tmp_path / "none") == set()
    info.write_text("flags\t\t: avx512f amx_tile amx_int8\n")
    for granted in (False, True):  # by the system, to this process
        monkeypatch.setattr(builder, "_may_use_tiles", lambda granted=granted: granted)
        assert ("amx_tile" in cpu_features(info)) == granted and "amx_int8" in cpu_features(info)

    def levels(*flags: str) -> list[str]:
        monkeypatch.setattr(builder, "cpu_features", lambda: set(flags))
        return supported_levels()

    assert levels() == ["generic"]
    assert levels("avx2", "fma", "f16c") == ["avx2", "generic"]
    assert missing_features()["avx_vnni"] == ["avx_vnni"]
    assert levels("avx2", "fma", "f16c", "avx_vnni") == ["avx_vnni", "avx2", "generic"]
    assert levels("avx2", "fma") == ["generic"] and missing_features()["avx2"] == ["f16c"]
    assert levels("fp", "asimd", "asimddp") == ["neon", "generic"]
    assert levels("fp", "asimd") == ["generic"], "products of bytes are required"
    assert levels("asimd", "asimddp", "i8mm", "sve") == ["neon_i8mm", "neon", "generic"]


def test_settings_that_cannot_be_are_refused() -> None:
    with pytest.raises(UserError, match="STRETTO_LEVEL=avx9") as caught:
        thread_team(read_env({"STRETTO_LEVEL": "avx9"}), None)
    assert "no such level" in str(caught.value.why) and LEVEL in str(caught.value.why)
    other, flags = next((name, flags) for name, flags in missing_features().items() if flags)
    with pytest.raises(UserError, match=f"STRETTO_LEVEL={other}") as caught:
        thread_team(read_env({"STRETTO_LEVEL": other}), None)
    assert f"lacks {' '.join(flags)}" in str(caught.value.why)
    with pytest.raises(UserError, match="STRETTO_THREADS is -1"):
        configure(environ={"STRETTO_THREADS": "-1"})


def test_a_forked_process_ends_without_the_threads() -> None:
    code = (
        "import os, sys, native; team = native.team(); child = os.fork();"
        "sys.exit(0) if child == 0 else sys.exit(os.waitpid(child, 0)[1])"
    )
    environ = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    process = subprocess.Popen([sys.executable, "-c", code], env=environ, start_new_session=True)
    try:
        assert process.wait(timeout=60) == 0
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
