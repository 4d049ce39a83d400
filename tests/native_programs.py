"""What the tests that compile programs share: the driver of all kernels (tests/native_driver), built in many ways."""

import os
import subprocess
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from stretto.core.env import read_env
from stretto.kernels.native.build import DEFINES, FLAGS, SOURCES, find_compiler, include_flags

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
    """Compile units side by side: (source, object file, flags) of each. program: the compiler (None: ours)."""
    language = [flag for flag in FLAGS if not flag.startswith(("-O", "-W"))]
    commands = []
    for source, made, flags in sorted(units, key=lambda unit: -unit[0].stat().st_size):  # what takes long comes first
        made.parent.mkdir(parents=True, exist_ok=True)
        commands.append(
            [program or compiler(), *language, *include_flags(), *DEFINES, *flags, "-c", source, "-o", made]
        )
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as workers:
        list(workers.map(run, commands))


def driver_units(
    folder: Path, flags: Sequence[str], families: Sequence[str] = FAMILIES
) -> list[tuple[Path, Path, list[str]]]:
    """The units of a driver of `families`, with the kernels compiled into it: arguments of `compiled`."""
    chosen = "-DFAMILIES=" + "".join(f"X({family})" for family in families)
    sources = [DRIVER / "main.cpp", *(DRIVER / f"drive_{family}.cpp" for family in families)]
    sources.append(SOURCES / "native" / "team.cpp")
    return [(source, folder / f"{source.stem}.o", [*flags, chosen]) for source in sources]
