"""Compiling the kernels: once per source, compiler and flags, into a private cache.

There is no build system: every `.cpp` is compiled by itself and all are linked into one shared library, in seconds. The
folder of a build is named by a hash of everything that went into it, so a new version never loads an old library. It
belongs to the user and nobody else may write to it, since what lies there is executed.
"""

import ctypes
import fcntl
import hashlib
import logging
import os
import platform
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

from stretto.core.errors import RunError
from stretto.core.pages import PAGE_SIZE
from stretto.core.tree import MAX_TREE_ROWS

SOURCES = Path(__file__).parent.parent
"""Every `.cpp` below here is part of the library: one beside each operation. Shared headers are in native/include/."""
FLAGS = (
    "-std=c++17",
    "-O2",
    "-fPIC",
    "-pthread",
    "-ffp-contract=off",  # every fused multiply-add is written by hand: bits must not change with the compiler
    "-fno-math-errno",
    "-Wall",  # into the log of the build; there are none
    "-Wextra",
    "-Wpedantic",
    "-Wconversion",
)
GCC_FLAGS = ("-fno-schedule-insns2",)  # rescheduling spills accumulators: 10.2 cycles become 11.6
DEFINES = (f"-DPAGE_TOKENS={PAGE_SIZE}", f"-DMAX_TREE_ROWS={MAX_TREE_ROWS}")  # what Python and C++ must agree on
_AVX512 = ("-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq", "-mavx512vnni", "-mfma", "-mf16c")
_AVX2 = ("-mavx2", "-mfma", "-mf16c")
LEVELS = {
    "amx": ("-DSTRETTO_LEVEL_AMX", *_AVX512, "-mamx-tile", "-mamx-int8"),
    "avx512": ("-DSTRETTO_LEVEL_AVX512", *_AVX512),
    "avx_vnni": ("-DSTRETTO_LEVEL_AVX_VNNI", *_AVX2, "-mavxvnni"),
    "avx2": ("-DSTRETTO_LEVEL_AVX2", *_AVX2),
    "neon_i8mm": ("-DSTRETTO_LEVEL_NEON_I8MM", "-march=armv8.2-a+dotprod+i8mm"),
    "neon": ("-DSTRETTO_LEVEL_NEON", "-march=armv8.2-a+dotprod"),
    "generic": ("-DSTRETTO_LEVEL_GENERIC",),
}
"""Instruction-set levels, best first, with the flags that select them: what vec.h asks, and what compilers may use."""
_AVX512_NEEDS = {"avx512f", "avx512bw", "avx512vl", "avx512dq", "avx512_vnni", "fma", "f16c"}
NEEDS = {
    "amx": _AVX512_NEEDS | {"amx_tile", "amx_int8"},
    "avx512": _AVX512_NEEDS,
    "avx_vnni": {"avx2", "fma", "f16c", "avx_vnni"},
    "avx2": {"avx2", "fma", "f16c"},
    "neon_i8mm": {"asimd", "asimddp", "i8mm"},
    "neon": {"asimd", "asimddp"},
    "generic": set(),
}
"""The flags of a CPU that runs a level, as Linux names them."""
_APPLE = {
    "asimd": "hw.optional.AdvSIMD",
    "asimddp": "hw.optional.arm.FEAT_DotProd",
    "i8mm": "hw.optional.arm.FEAT_I8MM",
}
KEEP_SECONDS = 30 * 24 * 3600  # since the last use: every new version leaves the build of the old one behind
LOG = "build.log"
_log = logging.getLogger(__name__)


def cpu_features(info: Path = Path("/proc/cpuinfo")) -> set[str]:
    """The flags of this CPU as Linux names them. Of macOS those of Arm are asked; nothing is known of other systems.

    info: what Linux says about its processors; the first one counts. "amx_tile" is left out where Linux does not let
    this process use the tile registers.
    """
    if info.exists():
        lines = (line.partition(":") for line in info.read_text(encoding="utf-8").splitlines())
        flags = next((set(text.split()) for key, _, text in lines if key.strip() in ("flags", "Features")), set())
        return flags if "amx_tile" not in flags or _may_use_tiles() else flags - {"amx_tile"}
    if platform.system() == "Darwin":
        return {flag for flag, name in _APPLE.items() if _output(["sysctl", "-n", name]).strip() == "1"}
    return set()


def _may_use_tiles() -> bool:
    """Ask Linux for the tile registers of AMX (kernels/linear/tile_registers.h): it may refuse."""
    arch_prctl, request, tile_data = 158, 0x1023, 18
    return bool(ctypes.CDLL(None).syscall(arch_prctl, request, tile_data) == 0)


def missing_features() -> dict[str, list[str]]:
    """For every level, best first: the flags that this CPU lacks. None are missing where it can run."""
    features = cpu_features()
    return {level: sorted(NEEDS[level] - features) for level in LEVELS}


def supported_levels() -> list[str]:
    """The levels that this CPU can run, best first."""
    return [level for level, missing in missing_features().items() if not missing]


def find_compiler(wanted: str = "") -> str | None:
    """The path of a C++ compiler: `wanted`, or the first of c++, g++ and clang++."""
    names = (wanted,) if wanted else ("c++", "g++", "clang++")
    return next((path for name in names if (path := shutil.which(name))), None)


def include_flags() -> list[str]:
    """Where headers are found: those of an operation by `operation/header.h`, shared ones by their name."""
    return ["-I", str(SOURCES), "-I", str(SOURCES / "native" / "include")]


def build(
    level: str, cache: Path, *, compiler: str = "", note: Callable[[str], None] | None = None, clean: bool = False
) -> Path:
    """The library of `level`, compiled now if the cache lacks it. Two processes that need it build it once.

    compiler: a name or path (default: what `find_compiler` finds). note: gets one line if something is compiled.
    clean: compile again. Raises RunError without a compiler, with the path of its log if compiling fails, and if the
    cache cannot be used. Warnings are in `LOG` beside the library.
    """
    try:
        return _build(level, cache, compiler, note, clean)
    except OSError as problem:
        raise RunError(
            "the native kernels cannot be built",
            why=str(problem),
            try_="STRETTO_CACHE=FOLDER, one that is yours; without one everything runs through torch, slower",
        ) from problem


def _build(level: str, cache: Path, compiler: str, note: Callable[[str], None] | None, clean: bool) -> Path:
    program = find_compiler(compiler)
    if program is None:
        raise RunError(
            f"no C++ compiler{f' {compiler!r}' if compiler else ''}",
            why="the native kernels are compiled on first use",
            try_="install g++ or clang++; without one everything runs through torch, slower",
        )
    version = _output([program, "--version"])
    flags = [*FLAGS, *DEFINES, *(GCC_FLAGS if "Free Software" in version else ()), *LEVELS[level]]
    sources = sorted([*SOURCES.rglob("*.cpp"), *SOURCES.rglob("*.h")])
    key = hashlib.sha256("\0".join([program, version, platform.machine(), *flags]).encode())
    for source in sources:
        key.update(str(source.relative_to(SOURCES)).encode() + b"\0" + source.read_bytes() + b"\0")
    folder = _private(cache / "native") / f"{level}-{key.hexdigest()[:16]}"
    library = _private(folder) / "libstretto.so"
    with suppress(OSError):  # a cache that can only be read may hold a library
        os.utime(folder)  # its last use
    if library.exists() and not clean:
        return library
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # released when the file is closed, also by a crash
        if library.exists() and not clean:
            return library
        if note is not None:
            note(f"compiling the native kernels for {level} (once, some seconds) ...")
        _log.info("compiling %s into %s", level, folder)
        _remove(folder.glob("work*"), older_than=0)  # of builds that were killed
        _remove(folder.parent.glob(f"{level}-*"), older_than=KEEP_SECONDS)
        with tempfile.TemporaryDirectory(prefix="work", dir=folder) as work:
            units = [source for source in sources if source.suffix == ".cpp"]
            objects = [Path(work) / f"{i}-{unit.stem}.o" for i, unit in enumerate(units)]
            compile_one = [program, *flags, *include_flags(), "-c"]
            commands = [[*compile_one, str(u), "-o", str(o)] for u, o in zip(units, objects, strict=True)]
            with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as workers:
                warnings = "".join(workers.map(lambda command: _compile(command, folder), commands))
            made = Path(work) / library.name
            warnings += _compile([program, *flags, "-shared", *map(str, objects), "-o", str(made)], folder)
            (folder / LOG).write_text(warnings, encoding="utf-8")
            made.replace(library)  # atomic: a library is there whole or not at all
    return library


def _private(folder: Path) -> Path:
    """`folder`, made if needed, ours alone. Raises PermissionError if it is somebody else's."""
    folder.mkdir(parents=True, exist_ok=True)
    status = folder.stat()
    if status.st_uid != os.geteuid():  # root may change every mode
        raise PermissionError(f"{folder} belongs to another user")
    if status.st_mode & 0o777 != 0o700:
        folder.chmod(0o700)
    return folder


def _remove(folders: Iterable[Path], *, older_than: float) -> None:
    """Remove those that were last changed more than this many seconds ago."""
    for folder in folders:
        with suppress(FileNotFoundError):  # two processes may be at it
            if time.time() - folder.stat().st_mtime >= older_than:
                shutil.rmtree(folder, ignore_errors=True)


def _output(command: Sequence[str]) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout


def _compile(command: Sequence[str], folder: Path) -> str:
    """Run a compiler and return its warnings."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        log = folder / LOG
        log.write_text(" ".join(command) + "\n" + done.stdout + done.stderr, encoding="utf-8")
        raise RunError(
            "the native kernels do not compile",
            why=f"{command[0]} ended with {done.returncode}; its output is in {log}",
            try_="another compiler (STRETTO_CXX=clang++); without one everything runs through torch, slower",
        )
    return done.stdout + done.stderr
