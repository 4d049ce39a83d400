"""Levels that this CPU lacks: their kernels run in an emulator, or with stand-ins for what it cannot execute, and give
the bits of the kernels that run here. Those of x86 run under sanitizers.

What is shown, and what is not:

- neon, neon_i8mm: the kernels as a cross compiler makes them, executed by qemu. Not their speed, and no real processor.
- avx_vnni: the kernels of the level, its dot products in the encoding of AVX-512 (the same instructions on the same
  registers). Not the encoding of AVX-VNNI, which is compiled only.
- amx: the kernels of the level, with a plain C++ emulation of the tile instructions (native_driver/tiles_emulated.h)
  that refuses what a processor would. Not the instructions, which are compiled only.

Arm needs Debian's g++-aarch64-linux-gnu and qemu-user, the others a CPU with AVX-512 VNNI. In CI Debian's
packages may not be missing.
"""

import os
import platform
import shutil
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from native_programs import DRIVER, FAMILIES, SANITIZED, SANITIZERS, compiled, compiler, driver_units, run

from stretto.core.env import read_env
from stretto.kernels.native.build import LEVELS, NEEDS, SOURCES, build, cpu_features, supported_levels

WARNINGS = ("-Wall", "-Wextra", "-Wpedantic", "-Wconversion", "-Werror")
# Sanitizers' own programs do not run in the emulator; undefined arithmetic stops there with a signal.
TRAPS = (
    *("-O1", "-fsanitize=undefined,float-cast-overflow", "-fno-sanitize=null,object-size"),
    "-fsanitize-undefined-trap-on-error",
)
CROSS, EMULATOR = "aarch64-linux-gnu-g++", "qemu-aarch64"


@dataclass(frozen=True)
class Build:
    """How the driver is compiled for a level, and runs. families: those whose code differs from another level's."""

    flags: Sequence[str]
    checks: Sequence[str] = SANITIZED
    families: Sequence[str] = FAMILIES
    program: str | None = None
    link: Sequence[str] = (SANITIZERS,)
    before: Sequence[str] = ()
    features: frozenset[str] = field(default_factory=frozenset)

    def why_not(self) -> str | None:
        """Why it cannot be run on this machine."""
        missing = sorted(self.features - cpu_features())
        if missing:
            return f"this CPU lacks {', '.join(missing)}"
        if self.program is None:
            return None
        absent = [name for name in (self.program, *self.before) if shutil.which(name) is None]
        return f"no {' and no '.join(absent)}: apt-get install g++-aarch64-linux-gnu qemu-user" if absent else None


def arm(level: str, families: Sequence[str] = FAMILIES) -> Build:
    return Build(LEVELS[level], TRAPS, families, CROSS, ("-static",), (EMULATOR,))


def other_encoding() -> list[str]:
    flags = [flag for flag in LEVELS["avx_vnni"] if flag != "-mavxvnni"]
    return [*flags, "-mavx512vl", "-mavx512vnni"]


def emulated_tiles() -> list[str]:
    flags = [flag for flag in LEVELS["amx"] if not flag.startswith("-mamx")]
    return [*flags, f'-DSTRETTO_TILES="{DRIVER / "tiles_emulated.h"}"']


BUILDS = {
    "avx_vnni": Build(
        other_encoding(),
        families=("vectors", "linear", "attention"),
        features=frozenset({"avx2", "fma", "f16c", "avx512vl", "avx512_vnni"}),
    ),
    "amx": Build(
        emulated_tiles(),
        families=("vectors", "linear"),
        features=frozenset(NEEDS["avx512"]),
    ),
    "neon": arm("neon"),
    "neon_i8mm": arm("neon_i8mm", ("vectors", "linear")),
}


@pytest.fixture(scope="module")
def sums(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """What the driver prints of the kernels that users of this machine get. It is the driver of
    test_native_sanitized.py, whose objects are kept."""
    folder = tmp_path_factory.mktemp("here")
    best, env = supported_levels()[0], read_env()
    units = driver_units(folder, [*SANITIZED, *LEVELS[best]])  # levels differ in how fixed point lies in memory
    compiled(units)
    run([compiler(), SANITIZERS, "-pthread", *(made for _, made, _ in units), "-ldl", "-o", folder / "driver"])
    return run([folder / "driver", build(best, env.cache_dir, compiler=env.cxx)]).splitlines()


@pytest.mark.timeout(900)  # compilers and emulators, on a machine that does other things
@pytest.mark.parametrize("level", BUILDS)
def test_levels_of_other_cpus_give_the_bits_of_this_one(level: str, sums: list[str], tmp_path: Path) -> None:
    if level in supported_levels():
        pytest.skip("this CPU runs it: test_native_sanitized.py does")
    how = BUILDS[level]
    if why := how.why_not():
        if os.environ.get("CI") and how.program is not None:
            pytest.fail(why)
        pytest.skip(why)
    units = driver_units(tmp_path, [*how.checks, *WARNINGS, *how.flags], how.families)
    compiled(units, how.program)
    objects = [made for _, made, _ in units]
    run([how.program or compiler(), *how.link, "-pthread", *objects, "-ldl", "-o", tmp_path / "driver"])
    found = run([*how.before, tmp_path / "driver"]).splitlines()
    assert found and not Counter(found) - Counter(sums), "lines that differ"
    assert len(found) == len(sums) or how.families != FAMILIES


@pytest.mark.parametrize(("level", "names"), [("amx", "tdp"), ("avx_vnni", "vpdp")])
def test_instructions_that_cannot_run_here_compile(level: str, names: str, tmp_path: Path) -> None:
    """With the real instructions, and without a warning: those of AVX-VNNI in its encoding, which needs no AVX-512."""
    if platform.machine() != "x86_64":
        pytest.skip("levels of x86")
    sources = [SOURCES / "linear" / "linear.cpp", SOURCES / "native" / "exports.cpp"]
    compiled([(source, tmp_path / f"{source.stem}.o", ["-O1", *WARNINGS, *LEVELS[level]]) for source in sources])
    lines = run(["objdump", "-d", "--no-show-raw-insn", tmp_path / "linear.o"]).splitlines()
    products = [line for line in lines if names in line]
    assert products and (level == "amx" or all("{vex}" in line for line in products))
    assert level == "amx" or not any("%zmm" in line or "%k1" in line for line in lines)
