"""What the tests that compile programs share: the driver of all kernels (tests/native_driver), built in many ways."""

import functools
import hashlib
import os
import shutil
import subprocess
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from stretto.core.env import read_env
from stretto.kernels.native.build import DEFINES, FLAGS, SOURCES, find_compiler, include_flags

_ROOT = Path(__file__).parents[1]
DRIVER = Path(__file__).parent / "native_driver"
FAMILIES = tuple(sorted(path.stem.removeprefix("drive_") for path in DRIVER.glob("drive_*.cpp")))
SEEN = "-Dalways_inline=unused"
"""Nothing is inlined: what takes minutes to compile with checks, or without optimization, takes seconds."""
SANITIZERS = "-fsanitize=address,undefined,float-cast-overflow"
# Reads whose values are not used stay in the program. A null pointer shows without a check of its own.
SANITIZED = (SANITIZERS, "-fno-sanitize-recover=all", "-O0", "-g1", SEEN, "-fno-sanitize=null,object-size")
_OPTIONS = {
    "ASAN_OPTIONS": "detect_leaks=0",  # they are looked for with ptrace, which is not allowed everywhere
    "UBSAN_OPTIONS": "print_stacktrace=1",
    "TSAN_OPTIONS": "halt_on_error=1",
}


def run(command: Sequence[object]) -> str:
    """What a command prints; fails with what it says to standard error."""
    environ = {**os.environ, **_OPTIONS}
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True, env=environ, check=False)
    if done.returncode:
        last = done.stdout.splitlines()[-1:]
        pytest.fail(f"{command[0]} ended with {done.returncode} after {last}:\n{done.stderr[:6000]}", pytrace=False)
    return done.stdout


def compiler() -> str:
    program = find_compiler(read_env().cxx)
    assert program is not None, "these tests need a C++ compiler and its sanitizers: apt-get install g++"
    return program


def compiled(units: Sequence[tuple[Path, Path, Sequence[str]]], program: str | None = None) -> None:
    """Compile units side by side: (source, object file, flags) of each. program: the compiler (None: ours).

    Objects are kept in the user's cache, as kernels are, until a source, a flag or the compiler changes.
    """
    language = [flag for flag in FLAGS if not flag.startswith(("-O", "-W"))]
    made_by, kept = program or compiler(), _kept_objects()

    def make(unit: tuple[Path, Path, Sequence[str]]) -> None:
        source, made, flags = unit
        made.parent.mkdir(parents=True, exist_ok=True)
        command = [made_by, *language, *include_flags(), *DEFINES, *flags, "-c", str(source)]
        said = "\0".join([_sources(), _version(made_by), *command]).replace(str(_ROOT), "")  # the same in every clone
        key = hashlib.sha256(said.encode()).hexdigest()
        there = kept / f"{key}.o"
        if not there.exists():
            unfinished = kept / f"{key}.{os.getpid()}"
            run([*command, "-o", unfinished])
            unfinished.replace(there)
        os.utime(there)
        shutil.copyfile(there, made)

    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as workers:  # what takes long comes first
        list(workers.map(make, sorted(units, key=lambda unit: -unit[0].stat().st_size)))


@functools.cache
def _kept_objects() -> Path:
    """Where objects of these tests are kept; what nobody has used for a week goes."""
    folder = read_env().cache_dir / "test-objects"
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.iterdir():
        if old.stat().st_mtime < time.time() - 7 * 86400:
            old.unlink(missing_ok=True)
    return folder


@functools.cache
def _sources() -> str:
    """A hash of everything that may be included."""
    found = hashlib.sha256()
    for folder in (SOURCES, DRIVER):
        for path in sorted(folder.rglob("*")):
            if path.suffix in (".h", ".cpp"):
                found.update(f"{path.relative_to(folder)}\0{path.stat().st_size}\0".encode() + path.read_bytes())
    return found.hexdigest()


@functools.cache
def _version(program: str) -> str:
    return run([program, "--version"])


def driver_units(
    folder: Path, flags: Sequence[str], families: Sequence[str] = FAMILIES
) -> list[tuple[Path, Path, list[str]]]:
    """The units of a driver of `families`, with the kernels compiled into it: arguments of `compiled`."""
    chosen = "-DFAMILIES=" + "".join(f"X({family})" for family in families)
    sources = [DRIVER / "main.cpp", *(DRIVER / f"drive_{family}.cpp" for family in families)]
    sources.append(SOURCES / "native" / "team.cpp")
    return [(source, folder / f"{source.stem}.o", [*flags, chosen]) for source in sources]
