"""The kernels under sanitizers: a program of its own (tests/native_driver) calls every operation over buffers that end
where their contents end, and stresses the pool of threads. Its sums show that compilers agree on every bit."""

import os
import re
import shutil
import subprocess
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from native_programs import DRIVER, SANITIZED, compiled, compiler, driver_units, run

from stretto.core.env import read_env
from stretto.kernels.native.build import LEVELS, LOG, SOURCES, build, supported_levels

pytestmark = pytest.mark.timeout(900)  # a machine that does other things compiles for minutes
COMPILERS = ("", "clang++")  # "": what a user gets


def linked(objects: Sequence[Path], sanitizer: str, program: Path) -> Path:
    """The program; a clear failure where the compiler came without its sanitizers."""
    command = [compiler(), f"-fsanitize={sanitizer}", "-pthread", *objects, "-ldl", "-o", program]
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True, check=False)
    assert done.returncode == 0, (
        f"the sanitizers of {command[0]} are missing (libasan, libubsan and libtsan come with g++ on Debian and "
        f"Ubuntu; elsewhere they are packages of these names):\n{done.stderr[:3000]}"
    )
    return program


@pytest.fixture(scope="module")
def drivers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The driver for every level of this CPU, with the kernels compiled into it."""
    root = tmp_path_factory.mktemp("drivers")
    units = {level: driver_units(root / level, [*SANITIZED, *LEVELS[level]]) for level in supported_levels()}
    compiled([unit for of_level in units.values() for unit in of_level])
    return {
        level: linked([made for _, made, _ in of_level], "address,undefined", root / level / "driver")
        for level, of_level in units.items()
    }


@pytest.fixture(scope="module")
def sums(drivers: dict[str, Path]) -> dict[str, str]:
    """What the drivers print. A test that asks for it fails if a sanitizer found something."""
    with ThreadPoolExecutor(2) as workers:
        return dict(zip(drivers, workers.map(lambda driver: run([driver]), drivers.values()), strict=True))


def test_sanitizers_find_nothing_and_levels_agree(sums: dict[str, str]) -> None:
    assert len(set(sums.values())) == 1
    driven = {name for line in sums["generic"].splitlines() for name in line.split()[:-1]}
    registered = {
        name for unit in SOURCES.rglob("*.cpp") for name in re.findall(r"^STRETTO_OP\((\w+)", unit.read_text(), re.M)
    }
    assert driven == registered, "every operation is driven"


@pytest.mark.parametrize("name", COMPILERS)
@pytest.mark.parametrize("level", supported_levels())
def test_compilers_warn_of_nothing_and_agree(
    drivers: dict[str, Path], sums: dict[str, str], level: str, name: str
) -> None:
    """The library as users get it, called by the driver."""
    if name and shutil.which(name) is None:
        pytest.skip(f"{name} is not installed")
    env = read_env()
    library = build(level, env.cache_dir, compiler=name or env.cxx)
    assert (library.parent / LOG).read_text() == ""
    assert run([drivers[level], library]) == sums["generic"]


def test_threads_race_for_nothing(tmp_path: Path) -> None:
    flags = ["-fsanitize=thread", "-O1", "-g1"]
    objects = {
        source: tmp_path / f"{source.stem}.o"
        for source in (DRIVER / "team_stress.cpp", SOURCES / "native" / "team.cpp")
    }
    compiled([(source, made, flags) for source, made in objects.items()])
    program = linked(list(objects.values()), "thread", tmp_path / "team_stress")
    # older sanitizers cannot place their memory where addresses are random in more than 28 bits
    fixed = ["setarch", os.uname().machine, "-R"]
    works = (
        shutil.which("setarch") and subprocess.run([*fixed, "true"], capture_output=True, check=False).returncode == 0
    )
    assert run([*(fixed if works else []), program]) == "team\n"
